# SPDX-License-Identifier: Apache-2.0
"""The numbers of cross_entropy, against the textbook formula in float64, with F.cross_entropy's error as the bound."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from oracle import Options, gradient, truth
from probes import needs_the_library
from shapes import DTYPES, SHAPES, logits, targets
from torch import Tensor

from npu_ce_jit import cross_entropy

# The accumulation dtype is float32 for all inputs but float64, which is accumulated in float64.
RELATIVE = {torch.float64: 1e-13}


def relative_error_allowed(dtype: torch.dtype) -> float:
    return RELATIVE.get(dtype, 1e-6)


def close_or_no_worse(ours: Tensor, peer: Tensor, true: Tensor, dtype: torch.dtype) -> bool:
    """|ours - true| <= 2 |peer - true|, or a relative 1e-6 (of the largest value, plus the result's own rounding)."""
    error = (ours.double() - true).abs()
    budget = 2 * (peer.double() - true).abs()
    own_rounding = (true.to(dtype).double() - true).abs()
    floor = relative_error_allowed(dtype) * (1 + true.abs().max() if true.numel() else 1) + own_rounding
    return bool((error <= torch.maximum(budget, floor * torch.ones_like(error)) * (1 + 1e-9)).all())


def gradient_is_accurate(ours: Tensor, true: Tensor, dtype: torch.dtype) -> bool:
    """Two-byte types: an error of 0.5 % of each element, plus the smallest subnormal. Others: 2e-6 of the largest
    element."""
    error = (ours.double() - true).abs()
    if dtype in (torch.bfloat16, torch.float16):
        step = 2.0**-133 if dtype is torch.bfloat16 else 2.0**-24
        return bool((error <= 0.005 * true.abs() + step).all())
    allowed = 1e-13 if dtype is torch.float64 else 2e-6
    return bool((error <= allowed * (true.abs().max() if true.numel() else 1)).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_loss_and_gradient_are_as_good_as_torchs(
    shape: tuple[int, int], dtype: torch.dtype, reduction: str, device: torch.device
) -> None:
    options = Options(reduction)
    x, target = logits(*shape, dtype), targets(*shape)
    true = truth(x.double(), target, None, options)
    leaf = x.to(device).requires_grad_()
    loss = cross_entropy(leaf, target.to(device), reduction=reduction)
    assert loss.dtype == dtype
    assert loss.shape == true.loss.shape
    peer = F.cross_entropy(x, target, reduction=reduction)
    assert close_or_no_worse(loss.detach().cpu(), peer, true.loss, dtype)

    grad_loss = torch.rand(true.loss.shape).to(dtype)
    loss.backward(grad_loss.to(device))
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    assert gradient_is_accurate(leaf.grad.cpu(), gradient(x, target, None, options, grad_loss, torch.float64), dtype)


OPTIONS = [
    Options(reduction, ignore_index, smoothing, z_loss, softcap, scale)
    for (reduction, smoothing), (ignore_index, z_loss, softcap, scale) in itertools.product(
        itertools.product(["none", "mean", "sum"], [0.0, 0.1, 1.0]),
        [(-100, 0.0, None, 1.0), (3, 1e-3, None, 1.0), (-1, 0.0, 5.0, 1.0), (-100, 0.2, 2.5, 1.7), (0, 0.0, None, 0.3)],
    )
]


@pytest.mark.feature("weights, ignore_index, label smoothing, every reduction")
@pytest.mark.feature("softcap and logit scale")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o))
def test_every_option_in_every_dtype(
    options: Options, weighted: bool, dtype: torch.dtype, device: torch.device
) -> None:
    for rows, classes in [(13, 64), (11, 7), (3, 2049)]:
        x, target = logits(rows, classes, dtype), targets(rows, classes, 0.3, options.ignore_index)
        weight = torch.randn(classes).abs() + 0.1 if weighted else None
        if weight is not None:
            weight[classes // 2] = 0.0
            weight[-1] = -0.25
        wide = torch.promote_types(dtype, torch.float32)
        true = truth(x.double(), target, weight, options)
        peer_truth = truth(x.to(wide), target, weight, options)
        peer = peer_truth.loss.to(dtype)
        leaf = x.to(device).requires_grad_()
        output = cross_entropy(
            leaf,
            target.to(device),
            None if weight is None else weight.to(device),
            **options.as_dict(),
            return_z_loss=True,
            return_lse=True,
            return_argmax=True,
            return_entropy=True,
        )
        assert close_or_no_worse(output.loss.detach().cpu(), peer, true.loss, dtype)
        assert close_or_no_worse(output.z_loss.detach().cpu(), peer * 0 + true.z_loss, true.z_loss, dtype)
        assert output.lse.dtype == output.entropy.dtype == wide
        assert close_or_no_worse(output.lse.detach().cpu(), peer_truth.lse, true.lse, wide)
        assert close_or_no_worse(output.entropy.detach().cpu(), peer_truth.entropy, true.entropy, wide)
        # The argmax may differ from the oracle's: in the accumulation dtype, softcap rounds near maxima together.
        chosen = true.log_prob.gather(1, output.argmax.cpu()[:, None])[:, 0]
        assert torch.allclose(chosen, true.log_prob.amax(1), rtol=0, atol=1e-5)

        grad_loss = torch.rand(true.loss.shape).to(dtype)
        output.loss.backward(grad_loss.to(device))
        expected = gradient(x, target, weight, options, grad_loss, torch.float64)
        ours = leaf.grad.cpu()
        # Where terms cancel, the larger ones' rounding remains: it is bounded by the error of the formula in float32.
        budget = 4 * (gradient(x, target, weight, options, grad_loss, wide).double() - expected).abs().max()
        # An NPU computes the softcap's slope to full accuracy only for large positive logits: elsewhere p is small.
        digits = 4 if options.softcap and device.type == "npu" else 1
        floor = digits * relative_error_allowed(dtype) * expected.abs().max()
        rounding = (expected.to(dtype).double() - expected).abs()
        assert ((ours.double() - expected).abs() <= torch.maximum(budget, floor) + 1.05 * rounding).all()


@pytest.mark.feature("half gradients as if made in float32")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("margin", [0.0, 2.0, 5.0, 9.2])
def test_the_gradient_of_a_confident_row_keeps_its_digits(
    margin: float, dtype: torch.dtype, device: torch.device
) -> None:
    """At a margin of 9.2, 1 - p is 1e-4; p - 1 in the logits' dtype would be 0 or off by 100 %."""
    x = torch.zeros(4, 2, dtype=dtype)
    x[:, 1] = -margin
    target = torch.tensor([0, 1, 0, 1])
    leaf = x.to(device).requires_grad_()
    cross_entropy(leaf, target.to(device), reduction="sum").backward()
    expected = gradient(x, target, None, Options("sum"), torch.ones(()), torch.float64)
    assert ((leaf.grad.cpu().double() - expected).abs() <= 0.005 * expected.abs()).all()


@needs_the_library
def test_a_confident_row_in_float32_keeps_more_than_p_has() -> None:
    """p in float32 has an error of 6e-8, which is 6e-4 of 1 - p = 1e-4: only expm1 at the target keeps the accuracy."""
    x = torch.zeros(64, 2)
    x[:, 1] = -torch.linspace(0, 12, 64)
    leaf, target = x.clone().requires_grad_(), torch.zeros(64, dtype=torch.int64)
    cross_entropy(leaf, target, reduction="sum").backward()
    expected = gradient(x, target, None, Options("sum"), torch.ones(()), torch.float64)
    assert ((leaf.grad.double() - expected).abs() <= 1e-6 * expected.abs()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_large_vocabulary_keeps_its_digits(dtype: torch.dtype, device: torch.device) -> None:
    x, target = logits(2, 152064, dtype), targets(2, 152064)
    options = Options("mean", label_smoothing=0.1)
    true = truth(x.double(), target, None, options)
    leaf = x.to(device).requires_grad_()
    loss = cross_entropy(leaf, target.to(device), label_smoothing=0.1)
    assert close_or_no_worse(loss.detach().cpu(), F.cross_entropy(x, target, label_smoothing=0.1), true.loss, dtype)
    loss.backward()
    assert gradient_is_accurate(
        leaf.grad.cpu(), gradient(x, target, None, options, torch.ones(()), torch.float64), dtype
    )


@pytest.mark.feature("lse and entropy beside the loss, differentiable")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lse_entropy_and_z_loss_are_differentiable(dtype: torch.dtype, device: torch.device) -> None:
    x, target = logits(6, 19, dtype), targets(6, 19, 0.3)
    options = Options(z_loss=0.1, softcap=4.0)

    def total(output: object) -> Tensor:
        return (
            output.loss.cpu().double()
            + 0.5 * output.z_loss.cpu().double()
            + (output.lse.cpu().double() * torch.arange(6)).sum()
            - 2 * output.entropy.cpu().double().sum()
        )

    leaf = x.clone().requires_grad_()
    output = cross_entropy(
        leaf.to(device), target.to(device),
        z_loss=0.1, softcap=4.0, return_z_loss=True, return_lse=True, return_entropy=True,
    )  # fmt: skip
    total(output).backward()
    true_leaf = x.double().requires_grad_()
    total(truth(true_leaf, target, None, options)).backward()
    error = (leaf.grad.double() - true_leaf.grad).abs()
    # Terms of opposite signs cancel, so float32's error is measured against the largest element.
    floor = relative_error_allowed(dtype) * 2 * true_leaf.grad.abs().max()
    assert (error <= torch.finfo(dtype).eps * true_leaf.grad.abs() + floor).all()


@pytest.mark.feature("int32 targets, logits of any strides")
@pytest.mark.parametrize("target_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("layout", ["transposed", "row slice", "column slice", "every other column", "stride 0"])
def test_any_strides(layout: str, target_dtype: torch.dtype, device: torch.device) -> None:
    x = logits(12, 35, torch.float32)
    memory, view = {
        "transposed": (x.t().contiguous(), lambda m: m.t()),
        "row slice": (torch.cat([x, x]), lambda m: m[::2][:12]),
        "column slice": (torch.cat([x, x, x], 1), lambda m: m[:, 35:70]),
        "every other column": (torch.stack([x, x], 2).flatten(1), lambda m: m[:, ::2]),
        "stride 0": (x, lambda m: m[:1].expand(12, 35)),
    }[layout]
    dense = view(memory).contiguous().requires_grad_()
    target = targets(12, 35, 0.2).to(target_dtype)
    leaf, strided_target = view(memory.to(device)), torch.stack([target, target], 1).to(device)[:, 0]
    leaf.requires_grad_()
    for r in ("mean", "none"):
        ours = cross_entropy(leaf, strided_target, reduction=r)
        theirs = F.cross_entropy(dense, target.long(), reduction=r)
        torch.testing.assert_close(ours.cpu(), theirs)
        # .sum() gives the rows a gradient of stride 0.
        (a,) = torch.autograd.grad(ours.sum(), leaf)
        (b,) = torch.autograd.grad(theirs.sum(), dense)
        torch.testing.assert_close(a.cpu(), b)


def test_weights_in_the_logits_dtype_are_taken_too(device: torch.device) -> None:
    x, target, weight = logits(9, 5, torch.bfloat16), targets(9, 5), torch.rand(5)
    half = cross_entropy(x.to(device), target.to(device), weight.bfloat16().to(device))
    full = cross_entropy(x.to(device), target.to(device), weight.bfloat16().float().to(device))
    assert torch.equal(half.cpu(), full.cpu())


@pytest.mark.feature("the same bits on any number of threads")
@needs_the_library
def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    shapes = [(513, 100), (3, 70000), (1, 140001), (40000, 7)]
    threads = torch.get_num_threads()

    def run(x: Tensor, target: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        output = cross_entropy(leaf, target, label_smoothing=0.1, z_loss=0.1, return_lse=True, return_entropy=True)
        (output.loss + output.lse.sum() + output.entropy.sum()).backward()
        return [output.loss, output.lse, output.entropy, leaf.grad]

    try:
        for rows, classes in shapes:
            x, target = logits(rows, classes, torch.float32), targets(rows, classes, 0.1)
            torch.set_num_threads(1)
            alone = run(x, target)
            for count in (2, 3, 5):
                torch.set_num_threads(count)
                assert all(torch.equal(a, b) for a, b in zip(alone, run(x, target), strict=True))
    finally:
        torch.set_num_threads(threads)
