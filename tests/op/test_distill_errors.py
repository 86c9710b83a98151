# SPDX-License-Identifier: Apache-2.0
"""Distillation: each bad input raises the same type and text for real tensors, Meta and fakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from npu_ce_jit import linear_kl_div, linear_selected_logprobs, linear_topk_logprobs
from npu_ce_jit.op.saved import PARAMETERS_TAKEN_APART

INT = torch.int64


def layer(device: str) -> dict[str, Any]:
    return {"input": torch.zeros(3, 4, device=device), "linear_weight": torch.zeros(5, 4, device=device)}


def teacher(device: str) -> dict[str, Any]:
    of_teacher = {
        "teacher_input": torch.zeros(3, 2, device=device), "teacher_linear_weight": torch.zeros(5, 2, device=device)
    }  # fmt: skip
    return layer(device) | of_teacher


Make = Callable[[str], Any]
GOOD: dict[Callable[..., Any], Make] = {
    linear_kl_div: teacher,
    linear_topk_logprobs: lambda device: layer(device) | {"k": 2},
    linear_selected_logprobs: lambda device: layer(device) | {"indices": torch.zeros(3, 2, dtype=INT, device=device)},
}


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Make:
    return lambda device: torch.empty(shape, dtype=dtype, device=device)


def number(value: Any) -> Make:
    return lambda _: value


LAYER: list[tuple[str, Make, type[Exception], str]] = [
    ("input", empty(3, 4, dtype=INT), NotImplementedError, "expected input of dtype float32, bfloat16, float16, or float64 except on npu, got int64 on {device}"),
    ("input", empty(3, 3), RuntimeError, "expected linear_weight whose last dimension is input's in_features (3), got [5, 4]"),
    ("linear_weight", empty(5, 4, dtype=torch.bfloat16), RuntimeError, "expected linear_weight of input's dtype float32, got bfloat16"),
    ("linear_weight", empty(5, 2, 4), RuntimeError, "expected input of shape [..., in_features] and linear_weight of shape [C, in_features], got [3, 4] and [5, 2, 4]"),
    ("linear_weight", empty(0), RuntimeError, f"expected input of shape [..., in_features] and linear_weight of shape [C, in_features], got [3, 4] and [0]. {PARAMETERS_TAKEN_APART}"),
    ("linear_weight", empty(0, 4), RuntimeError, "expected linear_weight with at least one class, got shape [0, 4]"),
    ("linear_bias", empty(4), RuntimeError, "expected linear_bias of shape [5], got [4]"),
    ("temperature", number(0.0), RuntimeError, "expected temperature finite and above 0, got 0.0"),
    ("temperature", number(float("inf")), RuntimeError, "expected temperature finite and above 0, got inf"),
    ("softcap", number(-1.0), RuntimeError, "expected softcap finite and above 0, or None, got -1.0"),
]  # fmt: skip
OTHERS: list[tuple[Callable[..., Any], str, Make, type[Exception], str]] = [
    (linear_kl_div, "teacher_input", empty(3, 2, dtype=INT), NotImplementedError, "expected teacher_input of dtype float32, bfloat16, float16, or float64 except on npu, got int64 on {device}"),
    (linear_kl_div, "teacher_input", empty(2, 2), ValueError, "expected teacher_input of shape [3, in_features], as many rows as input, got [2, 2]"),
    (linear_kl_div, "teacher_input", empty(3, 4), RuntimeError, "expected teacher_linear_weight whose last dimension is teacher_input's in_features (4), got [5, 2]"),
    (linear_kl_div, "teacher_linear_weight", empty(6, 2), RuntimeError, "expected teacher_linear_weight with linear_weight's 5 classes, got 6; pass the rows of the classes that both models have"),
    (linear_kl_div, "teacher_linear_bias", empty(4), RuntimeError, "expected teacher_linear_bias of shape [5], got [4]"),
    (linear_kl_div, "mask", empty(3), RuntimeError, "expected mask of dtype bool and shape [3], input's without in_features, got float32 and [3]"),
    (linear_kl_div, "mask", empty(3, 1, dtype=torch.bool), RuntimeError, "expected mask of dtype bool and shape [3], input's without in_features, got bool and [3, 1]"),
    (linear_kl_div, "beta", number(1.5), RuntimeError, "expected beta between 0.0 and 1.0, got 1.5"),
    (linear_kl_div, "teacher_softcap", number(0.0), RuntimeError, "expected teacher_softcap finite and above 0, or None, got 0.0"),
    (linear_kl_div, "reduction", number("batchmean"), ValueError, "expected reduction 'none', 'mean' or 'sum', got 'batchmean'"),
    (linear_topk_logprobs, "k", number(0), RuntimeError, "expected k between 1 and linear_weight's number of classes (5), got 0"),
    (linear_topk_logprobs, "k", number(6), RuntimeError, "expected k between 1 and linear_weight's number of classes (5), got 6"),
    (linear_selected_logprobs, "indices", empty(3, 2), RuntimeError, "expected indices of dtype int64 or int32, got float32"),
    (linear_selected_logprobs, "indices", empty(3, dtype=INT), RuntimeError, "expected indices of shape [3, k], got [3]"),
    (linear_selected_logprobs, "indices", empty(2, 2, dtype=INT), RuntimeError, "expected indices of shape [3, k], got [2, 2]"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["real", "meta", "fake"])
@pytest.mark.parametrize(
    ("call", "name", "make", "error", "text"), [*((call, *row) for call in GOOD for row in LAYER), *OTHERS]
)
def test_errors(
    call: Any, name: str, make: Make, error: type[Exception], text: str, kind: str, any_device: torch.device
) -> None:
    device = "meta" if kind == "meta" else any_device.type
    with FakeTensorMode(allow_non_fake_inputs=False) if kind == "fake" else torch.enable_grad():
        arguments = GOOD[call](device) | {name: make(device)}
        with pytest.raises(error) as caught:
            call(**arguments)
    assert type(caught.value) is error
    assert str(caught.value) == text.format(device=device)


@pytest.mark.parametrize("call", GOOD)
def test_what_is_no_tensor_and_what_lies_elsewhere(call: Any) -> None:
    good = GOOD[call]("cpu")
    tensors = [name for name, value in good.items() if isinstance(value, torch.Tensor)]
    for name in tensors:
        with pytest.raises(TypeError, match=f"expected {name} to be a Tensor, got NoneType"):
            call(**good | {name: None})
    for name in tensors[1:]:
        named = name.replace("teacher_input", "teacher_linear_weight")  # which is compared with its input
        with pytest.raises(RuntimeError, match=f"expected {named} on .*input's device (cpu|meta), got (meta|cpu)"):
            call(**good | {name: good[name].to("meta")})
    with pytest.raises(TypeError, match="expected temperature to be a number, got a Tensor"):
        call(**good, temperature=torch.tensor(0.5))


def test_a_class_out_of_range() -> None:
    indices = torch.tensor([[0, 1], [4, 5], [-1, 0]])
    with pytest.raises(IndexError) as caught:
        linear_selected_logprobs(**layer("cpu"), indices=indices)
    assert str(caught.value) == "indices[1, 1] = 5 is out of bounds for 5 classes: expected 0 <= index < 5"


@pytest.mark.parametrize("call", GOOD)
def test_transforms_and_forward_mode_are_refused(call: Any) -> None:
    good = GOOD[call]("cpu")
    text = f"expected {call.__name__} outside of torch.func's transforms and of forward mode"
    with pytest.raises(NotImplementedError, match=text):
        torch.func.grad(lambda x: call(**good | {"input": x}))(good["input"])
    with pytest.raises(NotImplementedError, match=text), torch.autograd.forward_ad.dual_level():
        call(**good | {"input": torch.autograd.forward_ad.make_dual(good["input"], torch.ones(3, 4))})


@pytest.mark.parametrize("call", [linear_kl_div, linear_selected_logprobs])
def test_a_derivative_of_the_gradient_is_refused(call: Any) -> None:
    good = GOOD[call]("cpu")
    x = good["input"].requires_grad_()
    with pytest.raises(NotImplementedError, match=f"expected no derivative of the gradient of {call.__name__}, got"):
        torch.autograd.grad(call(**good).sum(), x, create_graph=True)


@pytest.mark.parametrize("name", ["linear_weight", "teacher_linear_weight"])
def test_a_weight_whose_storage_is_freed_is_noticed(name: str) -> None:
    good = teacher("cpu")
    good[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"expected {name} with its values, got shape .* whose storage is freed"):
        linear_kl_div(**good)


@pytest.mark.parametrize("call", [linear_kl_div, linear_selected_logprobs])
def test_a_weight_that_was_emptied_or_changed_since_is_noticed(call: Any) -> None:
    good = GOOD[call]("cpu")
    options = {"reduction": "none"} if call is linear_kl_div else {}
    weight = good["linear_weight"].requires_grad_()
    loss = call(**good, **options).sum()
    weight.data = torch.empty(0)
    with pytest.raises(RuntimeError, match=r"linear_weight was \[5, 4\] in forward, now \[0\]"):
        loss.backward()
    good = GOOD[call]("cpu")
    weight = good["linear_weight"].requires_grad_()
    loss = call(**good, **options).sum()
    with torch.no_grad():
        weight.mul_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
