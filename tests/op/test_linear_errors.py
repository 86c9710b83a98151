# SPDX-License-Identifier: Apache-2.0
"""The loss from hidden states: a bad input raises the same type and text from the function, torch.ops, Meta, fakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from npu_ce_jit import linear_cross_entropy

OPS = torch.ops.npu_ce_jit


def good(device: str) -> dict[str, Any]:
    x, w = torch.zeros(3, 4, device=device), torch.zeros(5, 4, device=device)
    return {"input": x, "linear_weight": w, "target": torch.zeros(3, dtype=torch.int64, device=device)}


Make = Callable[[str], Any]


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Make:
    return lambda device: torch.empty(shape, dtype=dtype, device=device)


INT = torch.int64
ERRORS: list[tuple[str, Make, type[Exception], str]] = [
    ("input", empty(3, 4, dtype=INT), NotImplementedError, "expected input of dtype float32, bfloat16, float16, or float64 except on npu, got int64 on {device}"),
    ("input", empty(2, 4), ValueError, "expected input batch_size (2) to match target batch_size (3)"),
    ("linear_weight", empty(5, 4, dtype=torch.float64), RuntimeError, "expected linear_weight of input's dtype float32, got float64"),
    ("linear_weight", empty(4), RuntimeError, "expected linear_weight of shape [C, in_features], got [4]"),
    ("linear_weight", empty(5, 3), RuntimeError, "expected linear_weight whose last dimension is input's in_features (4), got [5, 3]"),
    ("linear_weight", empty(0, 4), RuntimeError, "expected linear_weight with at least one class, got shape [0, 4]"),
    ("linear_bias", empty(5, dtype=torch.bfloat16), RuntimeError, "expected linear_bias of input's dtype float32, got bfloat16"),
    ("linear_bias", empty(4), RuntimeError, "expected linear_bias of shape [5], got [4]"),
    ("linear_bias", empty(5, 1), RuntimeError, "expected linear_bias of shape [5], got [5, 1]"),
    ("target", empty(3), RuntimeError, "expected target of dtype int64 or int32, got float32"),
    ("target", empty(3, 1, dtype=INT), RuntimeError, "expected target of shape [N], got [3, 1]"),
    ("weight", empty(4), RuntimeError, "expected weight of shape [5], one for each class, got [4]"),
    ("reduction", lambda _: "avg", ValueError, "expected reduction 'none', 'mean' or 'sum', got 'avg'"),
    ("z_loss", lambda _: -0.1, RuntimeError, "expected z_loss finite and not negative, got -0.1"),
    ("softcap", lambda _: 0.0, RuntimeError, "expected softcap finite and above 0, or None, got 0.0"),
    ("loss_dtype", lambda _: torch.float16, RuntimeError, "expected loss_dtype None or float32, got float16"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["real", "meta", "fake"])
@pytest.mark.parametrize("call", [linear_cross_entropy, OPS.linear_cross_entropy], ids=["function", "torch.ops"])
@pytest.mark.parametrize(("name", "make", "error", "text"), ERRORS)
def test_errors(
    name: str, make: Make, error: type[Exception], text: str, call: Any, kind: str, any_device: torch.device
) -> None:
    device = "meta" if kind == "meta" else any_device.type
    with FakeTensorMode(allow_non_fake_inputs=False) if kind == "fake" else torch.enable_grad():
        arguments = good(device) | {name: make(device)}
        with pytest.raises(error) as caught:
            call(**arguments)
    assert type(caught.value) is error
    assert str(caught.value) == text.format(device=device)


def test_errors_of_the_function_alone() -> None:
    arguments = good("cpu")
    for name in arguments:
        with pytest.raises(TypeError, match=f"expected {name} to be a Tensor, got NoneType"):
            linear_cross_entropy(**arguments | {name: None})
    for name in ("z_loss", "softcap", "logit_scale", "label_smoothing"):
        with pytest.raises(TypeError, match=f"expected {name} to be a number, got a Tensor"):
            linear_cross_entropy(**arguments, **{name: torch.tensor(0.5)})
    with pytest.raises(TypeError, match="LinearCrossEntropyOptions or None, got dict"):
        linear_cross_entropy(**arguments, options={})
    with pytest.raises(RuntimeError, match=r"expected target of shape \[\] for input of shape \[in_features\]"):
        linear_cross_entropy(**arguments | {"input": torch.zeros(4)})
    with pytest.raises(
        RuntimeError, match=r"expected target of shape \[2, 3\] for input of shape \[2, 3, 4\], got \[3\]"
    ):
        linear_cross_entropy(**arguments | {"input": torch.zeros(2, 3, 4)})
    with pytest.raises(RuntimeError, match=r"expected input of shape \[N, in_features\], got \[2, 3, 4\]"):
        OPS.linear_cross_entropy(**arguments | {"input": torch.zeros(2, 3, 4)})
    with pytest.raises(RuntimeError, match=r"expected input of shape \[N, in_features\] for linear_weight \[5, 2, 4\]"):
        linear_cross_entropy(**arguments | {"input": torch.zeros(4), "linear_weight": torch.zeros(5, 2, 4)})
    with pytest.raises(RuntimeError, match="expected weight without requires_grad"):
        linear_cross_entropy(**arguments, weight=torch.ones(5, requires_grad=True))
    with pytest.raises(IndexError, match=r"target\[2\] = 9 is out of bounds for 5 classes"):
        linear_cross_entropy(**arguments | {"target": torch.tensor([-100, 0, 9])})
    with pytest.raises(RuntimeError, match="expected linear_weight on input's device cpu, got meta"):
        linear_cross_entropy(**arguments | {"linear_weight": torch.zeros(5, 4, device="meta")})
