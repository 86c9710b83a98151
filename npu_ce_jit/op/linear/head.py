# SPDX-License-Identifier: Apache-2.0
"""The products of a linear layer with some rows at a time, and the dtype in which they run."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Bounds of the widened copy of some classes' weights: its elements, and its share of all classes. With few features,
# the first alone would allow all of linear_weight. A copy of up to 256 classes may exceed both.
_WIDENED, _WIDENED_SHARE = 1 << 20, 1 / 8


class Head:
    """Products with linear_weight, in `dtype`. Where that is wider than linear_weight's, some classes at a time."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight = weight
        self._bias = None if bias is None else bias.to(dtype)
        classes, features = weight.shape
        self._width = classes
        self._widened = None
        if weight.dtype != dtype:
            width = min(_WIDENED // max(1, features), int(classes * _WIDENED_SHARE))
            self._width = min(classes, max(256, width))
            self._widened = weight.new_empty((self._width, features), dtype=dtype)

    def multiply(self, x: Tensor, out: Tensor) -> None:
        """`out = x @ weight.T + bias`"""
        for classes, weight in self._blocks(self._weight):
            if self._bias is None:
                torch.mm(x, weight.t(), out=out[:, classes])
            else:
                torch.addmm(self._bias[classes], x, weight.t(), out=out[:, classes])

    def grad_input(self, grad_logits: Tensor, out: Tensor) -> None:
        """`out = grad_logits @ weight`"""
        if self._widened is None:
            torch.mm(grad_logits, self._weight, out=out)
            return
        total = grad_logits.new_zeros(out.shape)
        for classes, weight in self._blocks(self._weight):
            total.addmm_(grad_logits[:, classes], weight)
        out.copy_(total)

    def add_grad_weight(self, grad_logits: Tensor, x: Tensor, to: Tensor, *, is_first: bool) -> None:
        """`to += grad_logits.T @ x`, the sum rounded once; where `is_first`, `to` is written without being read."""
        for classes, block in self._blocks(to):
            block.addmm_(grad_logits[:, classes].t(), x, beta=0 if is_first else 1)
            if self._widened is not None:
                to[classes] = block

    def _blocks(self, matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows of a matrix of linear_weight's shape: views, or copies in `dtype` where that is wider."""
        for start in range(0, len(matrix), max(1, self._width)):
            classes = slice(start, min(start + self._width, len(matrix)))
            block = matrix[classes]
            yield classes, block if self._widened is None else self._widened[: len(block)].copy_(block)


def product_dtype(input: Tensor) -> torch.dtype:
    """The dtype in which products run: on a CPU float32 for two-byte types, even where it has instructions for these.

    Neither torch on a CPU nor torch_npu multiplies two-byte matrices into a float32 result, and logits rounded to
    bfloat16 make the gradients several times less exact.
    """
    is_widened = input.device.type == "cpu" and input.dtype.itemsize == 2
    return torch.float32 if is_widened else input.dtype
