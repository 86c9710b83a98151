# SPDX-License-Identifier: Apache-2.0
"""Shapes and dtypes of the internal operators, for Meta and FakeTensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.op.schema import (
    ARGMAX,
    ENTROPY,
    LOG_PROB,
    LSE,
    NONE,
    Z_LOSS,
    ForwardOutputs,
    LinearOutputs,
    LossTerms,
    accumulation_dtype,
)


def forward(input: Tensor, target: Tensor, weight: Tensor | None, *terms_outputs_dtype: Any) -> ForwardOutputs:
    *terms, outputs, loss_dtype = terms_outputs_dtype
    rows, dtype = target.shape[0], accumulation_dtype(input.dtype)
    loss_shape = (rows,) if LossTerms(*terms).reduction == NONE else ()
    return (
        input.new_empty(loss_shape, dtype=loss_dtype),
        input.new_empty(loss_shape if outputs & Z_LOSS else (0,), dtype=loss_dtype),
        # Contiguous whatever the input's strides: empty_like would keep those of a transposed input.
        input.new_empty(input.shape if outputs & LOG_PROB else (0,)),
        input.new_empty((rows if outputs & LSE else 0,), dtype=dtype),
        input.new_empty((rows if outputs & ARGMAX else 0,), dtype=torch.int64),
        input.new_empty((rows if outputs & ENTROPY else 0,), dtype=dtype),
        input.new_empty((2, rows), dtype=dtype),
        input.new_empty((2,), dtype=dtype),
    )


def backward(
    grad_loss: Tensor | None,
    grad_z_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    input: Tensor,
    *_: object,
) -> Tensor:
    return input.new_empty(input.shape)


def backward_(*_: object) -> None:
    """The operator writes over its input, and returns nothing that has a shape."""


def linear(input: Tensor, linear_weight: Tensor, *others: Any) -> LinearOutputs:
    reduction, outputs, loss_dtype, output_mask = others[7], others[-6], others[-5], others[-1]
    rows, dtype = input.shape[0], accumulation_dtype(input.dtype)
    loss_shape = (rows,) if reduction == NONE else ()
    shapes = (input.shape, linear_weight.shape, linear_weight.shape[:1])
    grad_input, grad_linear_weight, grad_linear_bias = (
        input.new_empty(shape if asked else (0,)) for shape, asked in zip(shapes, output_mask, strict=True)
    )
    return (
        input.new_empty(loss_shape, dtype=loss_dtype),
        input.new_empty(loss_shape if outputs & Z_LOSS else (0,), dtype=loss_dtype),
        input.new_empty((rows if outputs & LSE else 0,), dtype=dtype),
        input.new_empty((rows if outputs & ARGMAX else 0,), dtype=torch.int64),
        input.new_empty((rows if outputs & ENTROPY else 0,), dtype=dtype),
        grad_input,
        grad_linear_weight,
        grad_linear_bias,
    )
