# SPDX-License-Identifier: Apache-2.0
"""Each row's log-probability of its target, entropy and sum of squared probabilities, with one gradient for all three.

The sum of squares is exp(lse(2x') - 2 lse(x')), so its gradient follows from those of two lse. Autograd would hold two
tensors of the logits' size, and copy logits that have no `[N, V]` view. In an eager step, the gradient here is the only
such tensor: the logits' own memory, or a new one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.op.autograd.functions import OPS
from npu_ce_jit.op.autograd.over_logits import OverLogits
from npu_ce_jit.op.rows import squared_probs
from npu_ce_jit.op.saved import require_unchanged, seen
from npu_ce_jit.op.schema import ENTROPY, LossTerms, accumulation_dtype
from npu_ce_jit.op.torch_private import (
    below_autograd,
    is_batched_gradient,
    is_differentiating,
)

# The size of the chunks in which the gradient of the sum of squares is made and added to the rest of the gradient.
_CHUNK_BYTES = 1 << 24

RowValues = tuple[Tensor, Tensor | None, Tensor | None]


class Wanted(NamedTuple):
    """Which values are computed for each row, and how."""

    terms: LossTerms
    entropy: bool
    sum_squared_probs: bool
    inplace_backward: bool


def row_blocks(logits: Tensor) -> list[Tensor]:
    """`[..., V]` logits as `[n, V]` views, in order: a single view where the rows are evenly apart."""
    if logits.dim() == 2:
        return [logits]
    try:
        return [logits.view(logits.shape[:-1].numel(), logits.shape[-1])]
    except (RuntimeError, ValueError):  # no such view, as for logits[:, :-1]; a FakeTensor raises ValueError
        return [block for part in logits.unbind(0) for block in row_blocks(part)]


class TokenLogprobsOfRows(torch.autograd.Function):
    """Takes `[..., V]` logits and targets `[...]`. Profilers and `grad_fn` show this name."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, wanted: Wanted) -> RowValues:
        blocks = [_flat(logits)] if torch.compiler.is_compiling() else row_blocks(logits)
        dtype = accumulation_dtype(logits.dtype)
        flat_target, rows = target.reshape(-1), [len(block) for block in blocks]
        found = [
            _forward(block, part, wanted.terms, ENTROPY if wanted.entropy else 0, dtype)
            for block, part in zip(blocks, flat_target.split(rows), strict=True)
        ]
        loss, entropy, row_stats = (_joined(parts) for parts in zip(*found, strict=True))
        not_ignored = flat_target != wanted.terms.ignore_index
        squares = doubled_stats = None
        if wanted.sum_squared_probs:
            doubled = [
                _forward(block, part, wanted.terms.doubled(), 0, dtype)[2]
                for block, part in zip(blocks, flat_target.split(rows), strict=True)
            ]
            doubled_stats = _joined(doubled)
            squares = squared_probs(row_stats, doubled_stats, not_ignored).view(target.shape)
        ctx.wanted, ctx.seen = wanted, seen(logits, target)
        ctx.over_logits = OverLogits(logits, wanted.inplace_backward)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, row_stats, entropy if wanted.entropy else None, doubled_stats, squares)
        of_rows = torch.where(not_ignored, entropy, 0).view(target.shape) if wanted.entropy else None
        return (0 - loss).view(target.shape), of_rows, squares

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        if all(g is None for g in grad_outputs):
            return None, None, None
        ctx.over_logits.require_unspent()
        logits, target, row_stats, entropy, doubled_stats, squares = ctx.saved_tensors
        require_unchanged(ctx.seen, ("logits", "target"), (logits, target))
        wanted, flat_target = ctx.wanted, target.reshape(-1)
        gradients = RowGradients.of(grad_outputs, squares, flat_target != wanted.terms.ignore_index)
        row = _Rows(flat_target, row_stats, entropy, doubled_stats, gradients)
        tensors = (*grad_outputs, logits)
        must_record = torch.compiler.is_compiling() or is_differentiating(*tensors)
        if must_record or any(map(is_batched_gradient, grad_outputs)):
            result = _gradient(_flat(logits), row, wanted)
            return _without_ignored(result, row, wanted).view(logits.shape), None, None
        if ctx.over_logits.allowed(logits):
            _write_over(row_blocks(logits.detach()), row, wanted)
            return ctx.over_logits.spend(logits), None, None
        blocks = row_blocks(logits)
        if len(blocks) == 1 and gradients.doubled_lse is None:
            result = below_autograd(_gradient, blocks[0], row, wanted)
            return result.view(logits.shape), None, None
        result = logits.detach().clone(memory_format=torch.contiguous_format)
        _write_over([_flat(result)], row, wanted)
        return result, None, None


class RowGradients(NamedTuple):
    """The gradients of the loss, lse(x'), the entropy and lse(2x'), `[N]` each."""

    loss: Tensor | None
    lse: Tensor | None
    entropy: Tensor | None
    doubled_lse: Tensor | None

    @classmethod
    def of(cls, grad_outputs: tuple[Tensor | None, ...], squares: Tensor | None, not_ignored: Tensor) -> RowGradients:
        logprobs, entropy, of_squares = (None if g is None else g.reshape(-1) for g in grad_outputs)
        doubled_lse = None
        if of_squares is not None:
            assert squares is not None
            doubled_lse = torch.where(not_ignored, of_squares * squares.reshape(-1), 0)
        return cls(
            loss=None if logprobs is None else -logprobs,
            lse=None if doubled_lse is None else -2 * doubled_lse,
            entropy=None if entropy is None else torch.where(not_ignored, entropy, 0),
            doubled_lse=doubled_lse,
        )


class _Rows(NamedTuple):
    """What backward reads for each row: row_stats and doubled_stats `[2, N]`, the others `[N]`."""

    target: Tensor
    row_stats: Tensor
    entropy: Tensor | None
    doubled_stats: Tensor | None
    gradients: RowGradients

    def part(self, rows: slice) -> _Rows:
        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[..., rows].contiguous()

        stats = of(self.row_stats)
        assert stats is not None
        gradients = RowGradients(*map(of, self.gradients))
        return _Rows(self.target[rows], stats, of(self.entropy), of(self.doubled_stats), gradients)

    def arguments(self, logits: Tensor, wanted: Wanted) -> tuple[Any, ...]:
        """`_backward`'s arguments, without the gradient of lse(2x')."""
        g = self.gradients
        return (
            g.loss, None, None, g.lse, g.entropy, logits, self.target, None, self.row_stats, self.entropy,
            self.row_stats.new_ones(2), *wanted.terms,
        )  # fmt: skip

    def doubled_arguments(self, logits: Tensor, wanted: Wanted) -> tuple[Any, ...]:
        return (
            None, None, None, self.gradients.doubled_lse, None, logits, self.target, None, self.doubled_stats, None,
            self.row_stats.new_ones(2), *wanted.terms.doubled(),
        )  # fmt: skip


def _forward(
    logits: Tensor, target: Tensor, terms: LossTerms, outputs: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the entropy (`[0]` if not asked), row_stats."""
    loss, _, _, _, _, entropy, row_stats, _ = OPS._forward.default(logits, target, None, *terms, outputs, dtype)
    return loss, entropy, row_stats


def _gradient(logits: Tensor, row: _Rows, wanted: Wanted) -> Tensor:
    """The gradient as a new tensor, differentiable. The sum of squares takes more tensors of its size."""
    result: Tensor = OPS._backward.default(*row.arguments(logits, wanted))
    if row.gradients.doubled_lse is None:
        return result
    return result + OPS._backward.default(*row.doubled_arguments(logits, wanted))  # type: ignore[no-any-return]


def _write_over(blocks: list[Tensor], row: _Rows, wanted: Wanted) -> None:
    """Writes the gradient over `blocks`, contiguous logits `[n, V]`."""
    start = 0
    for block in blocks:
        rows = len(block)
        if row.gradients.doubled_lse is not None:
            rows = max(1, _CHUNK_BYTES // (block.shape[1] * block.element_size()))
        for logits in block.split(rows) if rows else ():
            part = row.part(slice(start, start + len(logits)))
            start += len(logits)
            doubled = None
            if part.gradients.doubled_lse is not None:
                doubled = below_autograd(OPS._backward.default, *part.doubled_arguments(logits, wanted))
            below_autograd(OPS._backward_.default, *part.arguments(logits, wanted))
            if doubled is not None:
                logits.add_(doubled)


def _without_ignored(gradient: Tensor, row: _Rows, wanted: Wanted) -> Tensor:
    """The kernels have written 0 in ignored rows; a constant 0 has no derivative for a NaN to spoil."""
    if row.gradients.entropy is None and row.gradients.lse is None:
        return gradient
    return gradient.masked_fill((row.target == wanted.terms.ignore_index)[:, None], 0)


def _flat(logits: Tensor) -> Tensor:
    return logits.reshape(logits.shape[:-1].numel(), logits.shape[-1])


def _joined(parts: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
