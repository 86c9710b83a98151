# SPDX-License-Identifier: Apache-2.0
"""Checks of a linear layer's tensors and of its inputs, for losses that make the logits themselves."""

from __future__ import annotations

from torch import Tensor

from npu_ce_jit.op.checks import (
    check_device,
    check_dtypes,
    check_has_classes,
    check_kinds,
    check_row_ranks,
    check_weight_size,
    require_tensor,
    require_that,
    shape_of,
)
from npu_ce_jit.op.saved import PARAMETERS_TAKEN_APART


def check_linear(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    *,
    may_be_empty: bool = False,
) -> None:
    """Checks the tensors of a loss from `[N, in_features]` inputs; only `may_be_empty` allows a layer of no classes."""
    for name, tensor, shape in (
        ("input", input, "[N, in_features]"),
        ("linear_weight", linear_weight, "[C, in_features]"),
    ):
        require_tensor(name, tensor)
        if tensor.dim() != 2:
            advice = f". {PARAMETERS_TAKEN_APART}" if tensor.shape == (0,) else ""
            raise RuntimeError(f"expected {name} of shape {shape}, got {shape_of(tensor)}{advice}")
    check_kinds(input, target, weight, linear_weight=linear_weight, linear_bias=linear_bias)
    check_row_ranks(target, weight)
    check_layer(input, linear_weight, linear_bias)
    if not may_be_empty:
        check_has_classes("linear_weight", linear_weight, linear_weight.shape[0])
    if weight is not None:
        check_weight_size(weight, linear_weight.shape[0])


def check_head(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, prefix: str = "") -> None:
    """Checks a linear layer and inputs `[..., in_features]`; their names begin with `prefix`."""
    layer = {f"{prefix}linear_weight": linear_weight, f"{prefix}linear_bias": linear_bias}
    for name, tensor in {f"{prefix}input": input, **layer}.items():
        if tensor is not None or not name.endswith("bias"):
            require_tensor(name, tensor)
    check_device(f"{prefix}input", input, **layer)
    check_dtypes(f"{prefix}input", input, layer)
    if input.dim() < 1 or linear_weight.dim() != 2:
        raise RuntimeError(
            f"expected {prefix}input of shape [..., in_features] and {prefix}linear_weight of shape [C, in_features], "
            f"got {shape_of(input)} and {shape_of(linear_weight)}"
            + (f". {PARAMETERS_TAKEN_APART}" if linear_weight.shape == (0,) else "")
        )
    check_layer(input, linear_weight, linear_bias, prefix)
    check_has_classes(f"{prefix}linear_weight", linear_weight, linear_weight.shape[0])


def check_layer(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, prefix: str = "") -> None:
    """Checks the sizes of a linear layer; `linear_weight` is `[C, in_features]` or `[C, d1, ..., in_features]`."""
    if input.dim() < 1 or linear_weight.dim() < 2:
        raise RuntimeError(
            "expected input of shape [N, in_features] and linear_weight of shape [C, in_features] or "
            f"[C, d1, ..., in_features], got {shape_of(input)} and {shape_of(linear_weight)}"
        )
    features = input.shape[-1]
    require_that(
        linear_weight.shape[-1] == features,
        RuntimeError,
        lambda: (
            f"expected {prefix}linear_weight whose last dimension is {prefix}input's in_features ({features}), "
            f"got {shape_of(linear_weight)}"
        ),
    )
    if linear_bias is not None:
        expected = linear_weight.shape[:-1]
        require_that(
            linear_bias.shape == expected,
            RuntimeError,
            lambda: f"expected {prefix}linear_bias of shape {list(expected)}, got {shape_of(linear_bias)}",
        )
