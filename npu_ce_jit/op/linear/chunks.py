# SPDX-License-Identifier: Apache-2.0
"""`_linear`: the loss of `input @ linear_weight.T + linear_bias` and its gradients, a chunk of rows at a time.

Each chunk's logits are made, read by `_forward`, overwritten with their gradient by `_backward_` and multiplied into
the gradients of the layer, in one buffer that all chunks share. So neither the logits nor a second copy of
linear_weight's gradient exist whole.

What accumulates in what: the losses, their sum and linear_bias's gradient in float32 (float64 for float64 input); a
product of matrices in float32 too, where a CPU runs it in float32 or the device's own unit does so. linear_weight's
gradient is added up over the chunks in its own dtype and rounded once a chunk, so that chunks are few: a float32
copy of it may be larger than what chunks save.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.op.autograd.functions import OPS
from npu_ce_jit.op.checks import require_targets_in_range
from npu_ce_jit.op.rows import denominators_of_targets
from npu_ce_jit.op.saved import require_storage
from npu_ce_jit.op.schema import LSE, MEAN, NONE, LossTerms, accumulation_dtype
from npu_ce_jit.torch_compat import cpu_capabilities

# A chunk's logits take this share of the bytes of all. With less, time goes into reading linear_weight and its gradient
# once a chunk, and two-byte gradients are rounded more often.
_SHARE = 1 / 4
# Elements of a chunk's logits: a smaller chunk saves no memory worth having, a larger one gains no speed.
_FEWEST, _MOST = 1 << 21, 1 << 27
# Elements of the widened copy of some classes' weights, and the share of all classes that they are at most: of few
# features, that many elements would be the whole of linear_weight.
_WIDENED, _WIDENED_SHARE = 1 << 20, 1 / 8

Gradients = tuple[Tensor, Tensor, Tensor]


class Problem(NamedTuple):
    """The rows that are not ignored, and what they share."""

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    weight: Tensor | None
    grad_loss: Tensor | None
    terms: LossTerms

    def of(self, rows: Tensor) -> Problem:
        per_row = self.grad_loss is not None and self.terms.reduction == NONE
        return self._replace(
            input=self.input[rows],
            target=self.target[rows],
            grad_loss=self.grad_loss[rows] if per_row and self.grad_loss is not None else self.grad_loss,
        )


def linear(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    grad_loss: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and its gradients where `output_mask` asks for them: those for `grad_loss`, for 1 where it is None."""
    *numbers, loss_dtype, chunk_rows, aspect_ratio, output_mask = options
    problem = Problem(input, linear_weight, linear_bias, target, weight, grad_loss, LossTerms(*numbers))
    loss, *gradients = loss_and_gradients(problem, OneProcess(problem), chunk_rows, aspect_ratio, output_mask)
    return loss.to(loss_dtype), *gradients  # type: ignore[return-value]


def loss_and_gradients(
    problem: Problem, ranks: OneProcess, chunk_rows: int, aspect_ratio: int, output_mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`linear` with the loss in the accumulation dtype; `ranks` knows who has the rows and the classes."""
    require_storage(problem._fields[:5], problem[:5])
    target, ignore_index, reduction = problem.target, problem.terms.ignore_index, problem.terms.reduction
    if target.device.type == "cpu":
        # Within a chunk the row would be named wrongly.
        require_targets_in_range(target, ranks.classes, ignore_index)
    # Read on the host, since the products' sizes depend on it: one synchronisation, before any product is enqueued.
    kept = (target != ignore_index).cpu()
    count = int(kept.sum())
    places = None
    if count < len(kept):
        # Where each row finds its result; an ignored one in a row of zeros behind them all.
        places = torch.full_like(kept, count, dtype=torch.int64)
        places[kept] = torch.arange(count, device=kept.device)
        places = places.to(target.device)
        problem = problem.of(kept.nonzero()[:, 0].to(target.device))
    rows = _rows_of_a_chunk(problem, ranks.classes_of_a_rank, chunk_rows, aspect_ratio)
    loss, (grad_input, *others) = _in_chunks(problem, ranks, rows, output_mask)
    if places is not None:
        loss = _spread(loss, places) if reduction == NONE else loss
        grad_input = _spread(grad_input, places) if output_mask[0] else grad_input
    return loss, grad_input, *others  # type: ignore[return-value]


class OneProcess:
    """All rows and all classes are here. `vocab_linear` has what differs where they are not."""

    def __init__(self, problem: Problem) -> None:
        self.weight, self.terms = problem.weight, problem.terms
        # The cross entropy alone: its mean has another denominator than the z-loss's.
        self.ce_terms = self.terms._replace(reduction=NONE, z_loss=0.0)
        self.classes = self.classes_of_a_rank = len(problem.linear_weight)

    def denominators(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        return denominators_of_targets(target, self.weight, self.terms.ignore_index, dtype)

    def loss(
        self, logits: Tensor, target: Tensor, grad_loss: Tensor | None, denominators: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each row's cross entropy and lse; with `grad_loss`, writes the logits' gradient over them.

        No lse where there is no z-loss to make of it.
        """
        outputs = LSE if self.terms.z_loss else 0
        ce, _, _, lse, _, _, row_stats, _ = OPS._forward.default(
            logits, target, self.weight, *self.ce_terms, outputs, denominators.dtype
        )
        if grad_loss is not None:
            gradients = (grad_loss, None, None, None, None)
            OPS._backward_.default(*gradients, logits, target, self.weight, row_stats, None, denominators, *self.terms)
        return ce, lse

    def total(self, losses: Tensor) -> Tensor:
        return losses.sum()


def _in_chunks(
    problem: Problem, ranks: OneProcess, chunk_rows: int, output_mask: list[bool]
) -> tuple[Tensor, Gradients]:
    input, linear_weight, linear_bias, target, _, grad_loss, terms = problem
    dtype = accumulation_dtype(input.dtype)
    rows, classes = len(input), len(linear_weight)
    losses, z_losses = input.new_empty((2, rows), dtype=dtype)
    # The first chunk writes over what is in them.
    grad_input, grad_linear_weight = (
        (tensor.new_empty if rows else tensor.new_zeros)(tensor.shape if asked else (0,))
        for tensor, asked in zip((input, linear_weight), output_mask, strict=False)
    )
    grad_linear_bias = input.new_zeros((classes if output_mask[2] else 0,), dtype=dtype)
    denominators = ranks.denominators(target, dtype)
    if grad_loss is None:
        grad_loss = input.new_ones((rows,) if terms.reduction == NONE else (), dtype=dtype)

    product_dtype = _product_dtype(input)
    buffer = input.new_empty((chunk_rows, classes), dtype=product_dtype)
    head = _Head(linear_weight, linear_bias, product_dtype)
    for start in range(0, rows, chunk_rows):
        chunk = slice(start, min(start + chunk_rows, rows))
        x, y = input[chunk].to(product_dtype), target[chunk]
        logits = buffer[: len(x)]
        head.multiply(x, out=logits)
        of_chunk = grad_loss[chunk] if terms.reduction == NONE else grad_loss
        losses[chunk], lse = ranks.loss(logits, y, of_chunk if any(output_mask) else None, denominators)
        if terms.z_loss:
            z_losses[chunk] = terms.z_loss * lse * lse
        if output_mask[0]:
            head.grad_input(logits, out=grad_input[chunk])
        if output_mask[1]:
            head.add_grad_weight(logits, x, to=grad_linear_weight, is_first=start == 0)
        if output_mask[2]:
            grad_linear_bias += logits.sum(0, dtype=dtype)

    if terms.reduction != NONE:
        losses, z_losses = ranks.total(losses), ranks.total(z_losses) if terms.z_loss else z_losses
    if terms.reduction == MEAN:
        losses, z_losses = losses / denominators[0], z_losses / denominators[1]
    loss = losses + z_losses if terms.z_loss else losses
    return loss, (grad_input, grad_linear_weight, grad_linear_bias.to(input.dtype))


class _Head:
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
        """Rows of a matrix of linear_weight's shape, widened where the products are."""
        for start in range(0, len(matrix), max(1, self._width)):
            classes = slice(start, min(start + self._width, len(matrix)))
            block = matrix[classes]
            yield classes, block if self._widened is None else self._widened[: len(block)].copy_(block)


def _product_dtype(input: Tensor) -> torch.dtype:
    """The dtype in which products run: a CPU without instructions for two-byte types widens them element by element."""
    if input.device.type != "cpu" or input.dtype.itemsize != 2:
        return input.dtype
    capabilities = cpu_capabilities()
    names = ("avx512_bf16", "amx_bf16", "bf16") if input.dtype is torch.bfloat16 else ("avx512_fp16", "amx_fp16")
    return input.dtype if any(capabilities.get(name) for name in names) else torch.float32


def _rows_of_a_chunk(problem: Problem, classes: int, chunk_rows: int, aspect_ratio: int) -> int:
    rows, features = problem.input.shape
    if not chunk_rows and aspect_ratio:
        # As torch.nn.LinearCrossEntropyOptions says: the logits as large as the input, and that over the ratio.
        share = -(-rows // max(1, -(-classes // max(1, features))))
        chunk_rows = (1 << max(0, share - 1).bit_length()) // aspect_ratio
    elif not chunk_rows:
        widening = _product_dtype(problem.input).itemsize // problem.input.dtype.itemsize
        chunk_rows = min(int(rows * _SHARE / widening), _MOST // classes)
        chunk_rows = max(chunk_rows, _FEWEST // classes)
    return max(1, min(chunk_rows, rows))


def _spread(values: Tensor, places: Tensor) -> Tensor:
    return torch.cat((values, values.new_zeros((1, *values.shape[1:]))))[places]
