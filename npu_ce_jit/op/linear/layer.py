# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose logits are made, and whose gradients are added up, a chunk of rows at a time.

Everything accumulates in float32 (float64 for float64 input), except the products, which run in `product_dtype` and are
rounded to it once. So the gradient of a two-byte linear_weight is float32 while chunks are added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from npu_ce_jit.op.autograd.functions import OPS
from npu_ce_jit.op.linear.head import Head, product_dtype
from npu_ce_jit.op.schema import NONE, ForwardOutputs, LossTerms, accumulation_dtype

# A chunk's logits take this share of all logits' elements. Half a dozen tensors of their size are alive at once.
_SHARE = 1 / 16
# Elements of a chunk's logits: a smaller chunk saves no memory worth having, a larger one gains no speed.
_FEWEST, _MOST = 1 << 20, 1 << 26
# Classes whose two-byte products are added to the float32 gradient of linear_weight at once.
_CLASSES = 4096


class Layer:
    """`input @ linear_weight.T + linear_bias`, softcapped and divided by the temperature.

    `mask` is bool `[N]`: rows where it is False are read as zeros, since they may hold NaN and 0 * NaN is NaN.
    """

    def __init__(
        self,
        layer: Sequence[Tensor | None],
        temperature: float,
        softcap: float | None,
        mask: Tensor | None = None,
        output_mask: Sequence[bool] = (False, False, False),
    ) -> None:
        input, linear_weight, linear_bias = layer
        assert input is not None and linear_weight is not None
        self._input, self._mask, self._output_mask = input, mask, output_mask
        self._products, self.dtype = product_dtype(input), accumulation_dtype(input.dtype)
        self._head = Head(linear_weight, linear_bias, self._products)
        self._classes = len(linear_weight)
        # Every row's target is class 0, which is ignore_index too: the loss of a target is not needed.
        self.terms = LossTerms(NONE, 0, 0.0, 0.0, (softcap or 0.0) / temperature, 1 / temperature)
        shapes = (input.shape, linear_weight.shape, linear_weight.shape[:1])
        dtypes = (input.dtype, self.dtype, self.dtype)
        self._gradients = [
            input.new_zeros(shape if asked else (0,), dtype=dtype)
            for shape, dtype, asked in zip(shapes, dtypes, output_mask, strict=True)
        ]

    def chunks(self) -> Iterator[slice]:
        rows = len(self._input)
        of_a_chunk = min(int(rows * _SHARE), _MOST // self._classes)
        of_a_chunk = max(1, of_a_chunk, _FEWEST // self._classes)
        return (slice(start, min(start + of_a_chunk, rows)) for start in range(0, rows, of_a_chunk))

    def logits(self, chunk: slice) -> Tensor:
        """`[rows, C]` in the accumulation dtype, before softcap and temperature."""
        x = self._rows(chunk)
        logits = x.new_empty((len(x), self._classes))
        self._head.multiply(x, out=logits)
        return logits.to(self.dtype)

    def forward(self, logits: Tensor, outputs: int) -> ForwardOutputs:
        return OPS._forward.default(logits, self._targets(logits), None, *self.terms, outputs, self.dtype)  # type: ignore[no-any-return]

    def backward_(self, logits: Tensor, row_stats: Tensor, *, log_prob: Tensor | None, lse: Tensor | None) -> None:
        """Writes the logits' gradient over them, given those of the log-probabilities and of lse."""
        OPS._backward_.default(
            None, None, log_prob, lse, None, logits, self._targets(logits), None, row_stats, None,
            row_stats.new_zeros(2), *self.terms,
        )  # fmt: skip

    def add_gradients(self, chunk: slice, grad_logits: Tensor) -> None:
        grad_input, grad_weight, grad_bias = self._gradients
        if self._output_mask[2]:
            grad_bias += grad_logits.sum(0)
        grad_logits = grad_logits.to(self._products)
        if self._output_mask[0]:
            self._head.grad_input(grad_logits, out=grad_input[chunk])
        if self._output_mask[1]:
            x = self._rows(chunk)
            if self._products == self.dtype:
                grad_weight.addmm_(grad_logits.t(), x)
                return
            for sums, of_classes in zip(grad_weight.split(_CLASSES), grad_logits.split(_CLASSES, 1), strict=True):
                sums.add_(of_classes.t() @ x)

    def gradients(self) -> list[Tensor]:
        """For input, linear_weight and linear_bias, in the input's dtype; of shape [0] where not asked for."""
        return [gradient.to(self._input.dtype) for gradient in self._gradients]

    def _rows(self, chunk: slice) -> Tensor:
        x = self._input[chunk]
        if self._mask is not None:
            x = torch.where(self._mask[chunk, None], x, 0)
        return x.to(self._products)

    def _targets(self, logits: Tensor) -> Tensor:
        return logits.new_zeros(len(logits), dtype=torch.int64)


def fake_gradients(input: Tensor, linear_weight: Tensor, output_mask: Sequence[bool]) -> list[Tensor]:
    """The shapes of `Layer.gradients`."""
    shapes = (input.shape, linear_weight.shape, linear_weight.shape[:1])
    return [input.new_empty(shape if asked else (0,)) for shape, asked in zip(shapes, output_mask, strict=True)]
