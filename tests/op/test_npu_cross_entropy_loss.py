# SPDX-License-Identifier: Apache-2.0
"""The drop-in: its four outputs, its gradients, and its `_backward` operator."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from oracle import Options, truth
from shapes import DTYPES, SHAPES, logits, targets
from torch import Tensor

import npu_ce_jit
from npu_ce_jit import npu_cross_entropy_loss, npu_cross_entropy_loss_backward


@pytest.mark.feature("torch_npu's call, by name and position")
def test_the_vendors_example(device: torch.device) -> None:
    x, target = torch.randn(4096, 8080), torch.arange(0, 4096)
    loss, log_prob, zloss, lse = npu_cross_entropy_loss(x.to(device), target.to(device))
    assert (loss.shape, log_prob.shape, zloss.shape, lse.shape) == ((1,), (4096, 8080), (0,), (0,))
    true = F.cross_entropy(x.double(), target)
    assert abs(loss.item() - true.item()) <= 1e-6 * true.item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_log_prob_is_rounded_once(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    x, target = logits(*shape, dtype), targets(*shape, 0.2)
    _, log_prob, _, _ = npu_cross_entropy_loss(x.to(device), target.to(device))
    true = x.double().log_softmax(1)
    assert log_prob.dtype == dtype
    assert log_prob.is_contiguous()
    # The float32 result has an error of a few 1e-6; then it is rounded to the output's dtype, by at most half a step.
    error = (log_prob.cpu().double() - true).abs()
    half_step = torch.finfo(dtype).eps / 2 * true.abs()
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert (error <= 1.01 * half_step + smallest + (1e-13 if dtype is torch.float64 else 6e-6)).all()


GRID = list(itertools.product(["none", "mean", "sum"], [0.0, 0.1], [-100, 2, -1], [0.0, 0.05], [False, True]))


@pytest.mark.feature("z-loss")
@pytest.mark.feature("log_prob beside the loss, differentiable")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(("reduction", "smoothing", "ignore_index", "scale", "return_zloss"), GRID)
def test_outputs_and_gradients_against_the_textbook(
    reduction: str,
    smoothing: float,
    ignore_index: int,
    scale: float,
    return_zloss: bool,
    weighted: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    x, target = logits(9, 31, dtype), targets(9, 31, 0.3, ignore_index)
    target[3] = 5
    weight = torch.rand(31) + 0.2 if weighted else None
    options = Options(reduction, ignore_index, smoothing, scale)
    true_leaf, leaf = x.double().requires_grad_(), x.to(device).requires_grad_()
    true = truth(true_leaf, target, weight, options)
    loss, log_prob, zloss, lse = npu_cross_entropy_loss(
        leaf,
        target.to(device),
        None if weight is None else weight.to(device),
        reduction,
        ignore_index,
        smoothing,
        scale,
        return_zloss,
    )
    shape = (9,) if reduction == "none" else (1,)
    assert (loss.dtype, log_prob.dtype, zloss.dtype) == (dtype, dtype, dtype)
    assert (loss.shape, zloss.shape) == (shape, shape if return_zloss else (0,))
    assert (lse.dtype, lse.shape) == (torch.promote_types(dtype, torch.float32), (9,) if scale else (0,))
    assert not lse.requires_grad
    tolerance = {"rtol": torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(loss.detach().cpu().double(), true.loss.detach().reshape(shape), **tolerance)
    if return_zloss:
        torch.testing.assert_close(zloss.detach().cpu().double(), true.z_loss.detach().reshape(shape), **tolerance)
    if scale:
        torch.testing.assert_close(lse.cpu().double(), true.lse.detach(), rtol=1e-6, atol=1e-6)

    # Gradients through loss, zloss and log_prob together.
    pull = torch.rand(9, 31).to(dtype).double()
    total = 0.75 * loss.cpu().double().sum() + (log_prob.cpu().double() * pull).sum()
    expected = 0.75 * true.loss.sum() + (true.log_prob * pull).sum()
    if return_zloss:
        total, expected = total - 0.5 * zloss.cpu().double().sum(), expected - 0.5 * true.z_loss.sum()
    total.backward()
    expected.backward()
    error = (leaf.grad.cpu().double() - true_leaf.grad).abs()
    assert (error <= torch.finfo(dtype).eps * true_leaf.grad.abs() + 5e-6).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("scale", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_backward_operator(
    weighted: bool, scale: float, reduction: str, dtype: torch.dtype, device: torch.device
) -> None:
    """The input is log_prob, rounded: the relative error of p is up to |log_prob| * eps."""
    x, target = logits(8, 13, dtype), targets(8, 13, 0.25)
    weight = torch.rand(13) + 0.2 if weighted else None
    options = Options(reduction, label_smoothing=0.1, z_loss=scale)
    true_leaf = x.double().requires_grad_()
    true = truth(true_leaf, target, weight, options)
    target, weight = target.to(device), None if weight is None else weight.to(device)
    arguments = (weight, reduction, -100, 0.1, scale, True)
    loss, log_prob, zloss, lse = npu_cross_entropy_loss(x.to(device), target, *arguments)
    grad_loss, grad_zloss = torch.rand(loss.shape).to(dtype), torch.rand(zloss.shape).to(dtype)
    ((true.loss * grad_loss.double().reshape(true.loss.shape)).sum()
     + (true.z_loss * grad_zloss.double().reshape(true.loss.shape)).sum()).backward()  # fmt: skip

    def backward(grad_loss: Tensor, grad_zloss: Tensor) -> Tensor:
        gradients = grad_loss.to(device), log_prob, target, weight, grad_zloss.to(device), lse if scale else None
        return npu_cross_entropy_loss_backward(*gradients, reduction, -100, 0.1, scale).cpu()

    result = backward(grad_loss, grad_zloss)
    assert (result.dtype, result.shape) == (dtype, x.shape)
    eps = max(torch.finfo(dtype).eps, 1e-7 if dtype is not torch.float64 else 1e-14)
    scale_of_terms = (weight.max().item() if weighted else 1.0) * (1 + 20 * scale) * max(1.0, grad_loss.max().item())
    error = (result.double() - true_leaf.grad).abs()
    assert (error <= 8 * eps * log_prob.cpu().double().abs().max() * scale_of_terms).all()
    if reduction != "none":
        assert torch.equal(backward(grad_loss[0], grad_zloss[0]), result)


def test_autograd_does_not_pay_for_the_rounding_of_log_prob(device: torch.device) -> None:
    """The vendor's operator saves log_prob in bf16, and its gradient is off by 3.5 to 7 %."""
    x, target = logits(64, 4096, torch.bfloat16), targets(64, 4096)
    leaf, true_leaf = x.clone().to(device).requires_grad_(), x.double().requires_grad_()
    loss, log_prob, _, _ = npu_cross_entropy_loss(leaf, target.to(device), reduction="sum")
    loss.backward(torch.ones_like(loss))
    truth(true_leaf, target, None, Options("sum")).loss.backward()
    worst = ((leaf.grad.cpu().double() - true_leaf.grad) / true_leaf.grad).abs().max()
    assert worst <= 0.005
    by_hand = npu_cross_entropy_loss_backward(
        torch.ones(1).bfloat16(), log_prob.detach().cpu(), target, reduction="sum"
    )
    assert ((by_hand.double() - true_leaf.grad) / true_leaf.grad).abs().max() > 0.02


def test_the_backward_operator_looks_up_no_weight_of_a_target_out_of_range(any_device: torch.device) -> None:
    """On the CPU it raises the usual IndexError; on an npu the row is NaN, and the mean is over the others."""
    log_prob, target, weight = torch.randn(4, 7).log_softmax(1), torch.tensor([7, 2, -1, 3]), torch.rand(7) + 0.2

    def gradient(log_prob: Tensor, target: Tensor) -> Tensor:
        return npu_cross_entropy_loss_backward(
            torch.ones(1).to(any_device), log_prob.to(any_device), target.to(any_device), weight.to(any_device)
        ).cpu()

    if any_device.type == "cpu":
        with pytest.raises(IndexError, match=r"target\[0\] = 7 is out of bounds for 7 classes"):
            gradient(log_prob, target)
    else:
        result = gradient(log_prob, target)
        assert result[[0, 2]].isnan().all()
        torch.testing.assert_close(result[[1, 3]], gradient(log_prob[[1, 3]], target[[1, 3]]))


def test_scale_without_return_zloss_still_counts(device: torch.device) -> None:
    x, target = logits(5, 7, torch.float32), targets(5, 7)
    x, target = x.to(device), target.to(device)
    silent = npu_cross_entropy_loss(x, target, lse_square_scale_for_zloss=0.5)
    spoken = npu_cross_entropy_loss(x, target, lse_square_scale_for_zloss=0.5, return_zloss=True)
    plain = npu_cross_entropy_loss(x, target)
    assert torch.equal(silent[0], spoken[0])
    torch.testing.assert_close(spoken[0].cpu() - spoken[2].cpu(), plain[0].cpu())


def test_the_operator_keeps_the_vendors_names_order_and_defaults() -> None:
    schema = torch.ops.npu_ce_jit.npu_cross_entropy_loss.default._schema
    assert [(a.name, a.default_value) for a in schema.arguments] == [
        ("input", None),
        ("target", None),
        ("weight", None),
        ("reduction", "mean"),
        ("ignore_index", -100),
        ("label_smoothing", 0.0),
        ("lse_square_scale_for_zloss", 0.0),
        ("return_zloss", False),
    ]
    assert [r.name for r in schema.returns] == ["loss", "log_prob", "zloss", "lse_for_zloss"]


def test_a_gradient_that_nobody_asked_for_is_not_made_up(device: torch.device) -> None:
    """A gradient of zeros for log_prob would be another [N, C] tensor."""
    seen: list[Tensor | None] = []
    original = npu_ce_jit.op.autograd.functions.CrossEntropy.backward

    def spy(ctx: object, *gradients: Tensor | None) -> object:
        seen.extend(gradients)
        return original(ctx, *gradients)

    npu_ce_jit.op.autograd.functions.CrossEntropy.backward = staticmethod(spy)
    try:
        x, target = torch.randn(3, 4).to(device).requires_grad_(), torch.tensor([0, 1, 2]).to(device)
        npu_cross_entropy_loss(x, target)[0].sum().backward()
    finally:
        npu_ce_jit.op.autograd.functions.CrossEntropy.backward = staticmethod(original)
    assert [g is None for g in seen] == [False] + [True] * 7
