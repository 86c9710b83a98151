# SPDX-License-Identifier: Apache-2.0
"""Checks the forward kernels' results against float64."""

from __future__ import annotations

import oracle
import torch
from npu_kernels import Arguments, Forward, forward
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# A float32 sum of exponentials that is at least 1 has this rounding error in its logarithm; a peer with few rows may
# have none by chance.
SUM_ROUNDING = 2**-24
EVERYTHING = ("z_loss", "log_prob", "lse", "argmax", "entropy")


def logits_of(rows: int, classes: int, dtype: torch.dtype, scale: float = 3.0) -> Tensor:
    return (torch.randn(rows, classes) * scale).to(dtype)


def targets_of(rows: int, classes: int, ignored: float = 0.2, ignore_index: int = -100) -> Tensor:
    target = torch.randint(classes, (rows,))
    target[torch.rand(rows) < ignored] = ignore_index
    if rows > 2:
        target[0], target[-1] = classes - 1, 0
    return target


def truths(logits: Tensor, target: Tensor, a: Arguments) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The textbook formula in float64, and in float32 as the peer. Targets that are no class make their row NaN."""
    options = oracle.Options(a.reduction, a.ignore_index, a.label_smoothing, a.z_loss, a.softcap or None, a.logit_scale)
    weight = a.weight
    results = []
    for dtype in (torch.float64, torch.float32):
        w = None if weight is None else weight.to(dtype)
        result = oracle.truth(logits.to(dtype), target.long(), w, options)._asdict()
        x = logits.to(dtype) * a.logit_scale
        x = a.softcap * torch.tanh(x / a.softcap) if a.softcap else x
        max_ = x.amax(1) if x.shape[0] else x.new_zeros(0)
        result["row_stats"] = torch.stack([max_, result["lse"] - max_])
        counted = target != a.ignore_index
        weights = torch.ones(x.shape[1], dtype=dtype) if w is None else w
        result["denominators"] = torch.stack([weights[target[counted].long()].sum(), counted.sum().to(dtype)])
        results.append(result)
    return results[0], results[1]


def assert_close(name: str, got: Tensor, truth: Tensor, peer: Tensor, slack: float) -> None:
    """Requires NaN and inf in the same places. Elsewhere the error is at most twice the peer's, or a relative 1e-6,
    plus the rounding to the output's dtype."""
    truth, peer = truth.reshape(got.shape).double(), peer.reshape(got.shape).double()
    assert torch.equal(got.isnan(), truth.isnan()), name
    infinite = truth.isinf()
    assert torch.equal(got[infinite].double(), truth[infinite]), name
    finite = truth.isfinite()
    if not finite.any():
        return
    got, truth, peer = got[finite], truth[finite], peer[finite]
    peer_error = (peer - truth).abs().nan_to_num().max()
    if name != "denominators":
        peer_error = peer_error.clamp_min(SUM_ROUNDING)
    bound = torch.maximum(2 * peer_error, 1e-6 * truth.abs().max()) + slack
    if got.dtype != torch.float32:
        smallest = torch.finfo(got.dtype).smallest_normal
        bound = bound + truth.abs().clamp_min(smallest) * torch.finfo(got.dtype).eps / 2 * 1.001
    error = (got.double() - truth).abs()
    assert (error <= bound).all(), f"{name}: error {error.max():.3g}, bound {bound.max():.3g}"


def check(
    logits: Tensor,
    target: Tensor,
    a: Arguments,
    cores: int = 48,
    row_stride: int | None = None,
    plan_rows: int | None = None,
    sums: tuple[int, int] | None = None,
) -> Forward:
    result = forward(logits, target, a, cores, row_stride, plan_rows, sums)
    assert result.message == ""
    assert all(not report["violations"] for report in result.reports)
    truth, peer = truths(logits, target, a)
    # exp(2u) is rounded relative to 1, so the softcap has a rounding error relative to the cap.
    slack = 4 * a.softcap * 2**-24
    for name, got in result.tensors.items():
        if name == "argmax":
            assert torch.equal(got, truth["argmax"]), name
        else:
            assert_close(name, got, truth[name], peer[name], slack)
    return result


OPTIONS = {
    "smoothing": {"label_smoothing": 0.1},
    "weights": {"weight": True},
    "weighted_smoothing": {"weight": True, "label_smoothing": 0.3},
    "only_smoothing": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": 0.01, "outputs": ("z_loss",)},
    "z_loss_not_returned": {"z_loss": 0.01},
    "z_loss_of_nothing": {"outputs": ("z_loss",)},
    "softcap": {"softcap": 20.0},
    "scale": {"logit_scale": 0.7},
    "negative_scale": {"logit_scale": -1.5},
    "zero_scale": {"logit_scale": 0.0},
    "scaled_softcap": {"softcap": 5.0, "logit_scale": -0.5},
    "ignored_class": {"ignore_index": 1},
    "log_prob": {"outputs": ("log_prob",)},
    "statistics": {"outputs": ("lse", "entropy", "argmax")},
    "half_loss": {"loss_dtype": torch.float16},
    "bfloat16_loss": {"loss_dtype": torch.bfloat16, "z_loss": 0.1, "outputs": ("z_loss",)},
    "everything": {
        "weight": True,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "softcap": 30.0,
        "logit_scale": 1.1,
        "outputs": EVERYTHING,
    },
}


def arguments_of(options: dict, classes: int) -> Arguments:
    weight = torch.rand(classes) if options.get("weight") else None
    return Arguments(**{**options, "weight": weight})
