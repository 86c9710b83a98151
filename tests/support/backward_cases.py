# SPDX-License-Identifier: Apache-2.0
"""Inputs for the backward kernels, and the expected results with their bounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from backward_npu import Inputs, Result, compile_backward, compile_planner, expected, run
from oracle import Options
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OUTPUTS = ("loss", "z_loss", "lse", "entropy", "log_prob")
# The largest relative error of an element. Rounding to bf16 takes up to 2^-8 / 2 = 0.2 to 0.4 %; 0.5 % is promised.
RELATIVE = {torch.float32: 4e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
SMALLEST = {torch.float32: 1e-37, torch.float16: 2**-24, torch.bfloat16: 1e-37}
CANCELLED = 3e-6  # relative to the largest of the terms that an element is the sum of

Backward = Callable[..., Result]


def backward_in(folder: Path) -> Backward:
    """The kernels and their planner, compiled in a folder, as backward(inputs, **how)."""
    library, planner = compile_backward(folder / "backward.so"), compile_planner(folder / "planner.so")
    return lambda inputs, **how: run(library, planner, inputs, **how)


def inputs_of(
    rows: int,
    classes: int,
    dtype: torch.dtype = torch.float32,
    outputs: tuple[str, ...] = ("loss",),
    *,
    weight: bool = False,
    ignored: float = 0.2,
    target_dtype: torch.dtype = torch.int64,
    **options: object,
) -> Inputs:
    chosen = Options(**{"reduction": "none", **options})  # type: ignore[arg-type]
    target = torch.randint(0, classes, (rows,))
    target[torch.rand(rows) < ignored] = chosen.ignore_index
    gradients: dict[str, Tensor] = {}
    for name in outputs:
        if name == "log_prob":
            gradients[name] = torch.randn(rows, classes).to(dtype)
        elif name in ("lse", "entropy") or chosen.reduction == "none":
            gradients[name] = torch.randn(rows).to(dtype if name in ("loss", "z_loss") else torch.float32)
        else:
            gradients[name] = torch.randn(()).to(dtype)
    logits = (torch.randn(rows, classes) * 3).to(dtype)
    weights = torch.rand(classes) + 0.1 if weight else None
    return Inputs(logits, target.to(target_dtype), weights, chosen, **gradients)


def largest_terms(inputs: Inputs, truth: Tensor) -> Tensor:
    """For each row, the size of the terms whose sum an element is; they may cancel."""
    options = inputs.options
    largest = truth.abs().nan_to_num().amax(1, keepdim=True) if truth.numel() else truth
    if inputs.log_prob is not None:
        largest = largest + inputs.log_prob.double().abs().sum(1, keepdim=True) / truth.shape[1] ** 0.5
    share = len(truth) if options.reduction == "mean" else 1
    lse = torch.logsumexp(inputs.logits.double(), 1).abs().nan_to_num().max() if truth.numel() else 0
    of_z_loss = 2 * options.z_loss * lse * abs(options.logit_scale)
    # Each -p * log(p) is below 0.4; the entropy that multiplies p is below 12.
    for gradient, terms in ((inputs.loss, (1 + of_z_loss) / share), (inputs.lse, 1), (inputs.entropy, 4)):
        if gradient is not None:
            largest = largest + gradient.double().abs().reshape(-1, 1) * terms
    return largest


def assert_right(result: Result, inputs: Inputs, truth: Tensor | None = None) -> None:
    truth = expected(inputs) if truth is None else truth
    got, dtype = result.gradient, inputs.logits.dtype
    assert torch.equal(got.isnan(), truth.isnan())
    largest = largest_terms(inputs, truth)
    # exp() and a value as large as the softcap are rounded: an absolute error of x', and so a relative one of p.
    of_cap = 2**-22 * (inputs.options.softcap or 0)
    bound = (RELATIVE[dtype] + of_cap) * truth.abs() + (CANCELLED + of_cap) * largest + SMALLEST[dtype]
    error = (got.double() - truth).abs()
    wrong = (error > bound).nonzero()
    assert not len(wrong), (
        f"{len(wrong)} wrong, at {wrong[0].tolist()}: {got[tuple(wrong[0])]}, not {truth[tuple(wrong[0])]}"
    )


def random_inputs(random_: random.Random) -> tuple[Inputs, dict[str, object]]:
    least, most, most_rows = random_.choice([(1, 248, 150), (249, 640, 60), (641, 6000, 8)])
    classes, rows = random_.randint(least, most), random_.randint(1, most_rows)
    dtype = random_.choice(DTYPES)
    outputs = tuple(name for name in OUTPUTS if random_.random() < 0.4) or ("loss",)
    options = {
        "reduction": random_.choice(["none", "mean", "sum"]),
        "ignore_index": random_.choice([-100, 0, classes - 1]),
        "label_smoothing": random_.choice([0.0, 0.0, 0.1, 1.0]),
        "z_loss": random_.choice([0.0, 0.0, 0.01]),
        "softcap": random_.choice([None, None, 5.0, 30.0, 50.0]),
        "logit_scale": random_.choice([1.0, 1.0, 0.5, 2.0]),
    }
    how = {"offset": random_.choice([0, 0, 1, 8]), "cores": random_.choice([1, 3, 40, 48])}
    how |= random_.choice([{"in_place": True}, {"gap": random_.choice([0, 1, 7])}])
    inputs = inputs_of(
        rows,
        classes,
        dtype,
        outputs,
        weight=random_.random() < 0.4,
        target_dtype=random_.choice([torch.int32, torch.int64]),
        **options,
    )
    return inputs, how


def fuzz(backward: Backward, seeds: Iterable[int]) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        inputs, how = random_inputs(random.Random(seed))
        try:
            assert_right(backward(inputs, **how), inputs)
        except AssertionError as error:
            shape, options = tuple(inputs.logits.shape), inputs.options
            raise AssertionError(f"seed {seed}: {inputs.logits.dtype} {shape} {options} {how}: {error}") from error
