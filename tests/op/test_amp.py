# SPDX-License-Identifier: Apache-2.0
"""Automatic mixed precision: what autocast does to the three forms, and GradScaler around them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from forms import FORMS, gradients, operands, theirs
from shapes import ON_NPU
from torch import Tensor

from npu_ce_jit import cross_entropy, linear_cross_entropy, npu_cross_entropy_loss

HALVES = [torch.bfloat16, torch.float16]
halves = pytest.mark.parametrize("half", HALVES, ids=str)
# The relative error where hidden states, head and logits were rounded to the half type.
COARSE = {torch.bfloat16: 4e-2, torch.float16: 5e-3}


def places(device: torch.device) -> list[Tensor]:
    return [tensor.to(device) for tensor in operands(dtype=torch.float32)]


@pytest.mark.feature("autocast")
@halves
@pytest.mark.parametrize("form", FORMS)
def test_a_model_with_float32_parameters(form: str, half: torch.dtype, device: torch.device) -> None:
    """The layer runs in the half type. The loss is float32, but for the drop-in; gradients have the parameters'
    dtype."""
    hidden, head, target, weight = places(device)
    expected = gradients(theirs, *(t.cpu() for t in (hidden, head, target, weight)))
    with torch.autocast(device.type, half):
        loss, *parts = gradients(FORMS[form].loss, hidden, head, target, weight)
    assert loss.dtype == (half if form == "drop-in" else torch.float32)
    assert [part.dtype for part in parts] == [torch.float32] * 2
    for ours, exact in zip((loss, *parts), expected, strict=True):
        torch.testing.assert_close(ours.cpu().float(), exact, rtol=COARSE[half], atol=COARSE[half] * exact.abs().max())


@pytest.mark.feature("autocast")
@halves
def test_the_loss_of_half_logits_is_float32_and_its_gradient_is_not(half: torch.dtype, device: torch.device) -> None:
    hidden, head, target, weight = operands(dtype=torch.float32)
    logits = F.linear(hidden, head).to(half)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, target, weight.double())
    expected.backward()
    leaf = logits.to(device, copy=True).requires_grad_()
    # Class weights in the half type too, as after a model's .half().
    for class_weight in (weight, weight.to(half)):
        with torch.autocast(device.type, half):
            loss = cross_entropy(leaf, target.to(device), class_weight.to(device))
            assert npu_cross_entropy_loss(leaf, target.to(device), class_weight.to(device))[0].dtype == half
        assert loss.dtype == torch.float32
        rounded = F.cross_entropy(exact.detach(), target, class_weight.double())
        torch.testing.assert_close(loss.cpu().double(), rounded, rtol=1e-6, atol=0.0)
    (gradient,) = torch.autograd.grad(cross_entropy(leaf, target.to(device), weight.to(device)), leaf)
    assert gradient.dtype == half
    torch.testing.assert_close(gradient.cpu().double(), exact.grad, rtol=COARSE[half] / 8, atol=1e-6)


@pytest.mark.feature("autocast")
@halves
def test_autocast_off_and_nested(half: torch.dtype, device: torch.device) -> None:
    hidden, head, target, _ = places(device)
    x, w = hidden.to(half), head.to(half)
    other = HALVES[1 - HALVES.index(half)]

    def dtypes() -> list[torch.dtype]:
        losses = cross_entropy(F.linear(x, w), target), linear_cross_entropy(x, w, target)
        return [loss.dtype for loss in losses]

    outside = dtypes()
    assert outside == [half] * 2
    with torch.autocast(device.type, half):
        assert dtypes() == [torch.float32] * 2
        assert linear_cross_entropy(hidden, w, target, loss_dtype=half).dtype == half
        with torch.autocast(device.type, enabled=False):
            assert dtypes() == outside
            assert linear_cross_entropy(hidden, head, target).dtype == torch.float32
        with torch.autocast(device.type, other):
            assert linear_cross_entropy(hidden, head, target, loss_dtype=other).dtype == other
        assert dtypes() == [torch.float32] * 2
    assert dtypes() == outside


@pytest.mark.feature("autocast")
@pytest.mark.parametrize("form", FORMS)
def test_autocast_within_a_compiled_step(form: str, device: torch.device) -> None:
    tensors = places(device)

    def step(*arguments: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return FORMS[form].loss(*arguments)

    compiled: Callable[..., Tensor] = torch.compile(step, backend="aot_eager", fullgraph=True)
    results = [[t.cpu() for t in gradients(call, *tensors)] for call in (step, compiled)]
    torch.testing.assert_close(*results)
    assert results[1][0].dtype == (torch.bfloat16 if form == "drop-in" else torch.float32)


# torch_npu has a GradScaler of its own, besides torch's.
SCALERS = {"torch.amp": torch.amp.GradScaler, **({"torch.npu.amp": torch.npu.amp.GradScaler} if ON_NPU else {})}


@pytest.mark.feature("torch.amp.GradScaler")
@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("form", FORMS)
def test_grad_scaler_with_float16(form: str, scaler: str, device: torch.device) -> None:
    """A step agrees with float32 to float16's precision; one that overflows leaves the parameters unchanged."""
    hidden, head, target, weight = operands(dtype=torch.float32)
    expected = head - 0.1 * gradients(theirs, hidden, head, target, weight)[2]
    parameter = torch.nn.Parameter(head.to(device, copy=True))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    where = (device.type,) if scaler == "torch.amp" else ()
    scaler = SCALERS[scaler](*where, init_scale=2.0**12)
    there = [t.to(device) for t in (target, weight)]
    for scale_of_input in (1.0, torch.inf):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16):
            loss = FORMS[form].loss(hidden.to(device) * scale_of_input, parameter, *there)
        scaler.scale(loss.float()).backward()
        scaler.step(optimizer)
        scaler.update()
        torch.testing.assert_close(parameter.detach().cpu(), expected, rtol=0.0, atol=1e-3)
    assert scaler.get_scale() == 2.0**11
