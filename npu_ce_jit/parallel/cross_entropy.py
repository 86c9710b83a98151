# SPDX-License-Identifier: Apache-2.0
"""`vocab_parallel_cross_entropy`: the loss of logits whose classes a group shares."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.api.cross_entropy import HALVES
from npu_ce_jit.api.linear_cross_entropy import flat_rows
from npu_ce_jit.op import row_checks
from npu_ce_jit.op.autograd.functions import no_second_derivative
from npu_ce_jit.op.autograd.over_logits import OverLogits
from npu_ce_jit.op.distributed import vocab_parallel
from npu_ce_jit.op.distributed.targets import VocabRange
from npu_ce_jit.op.distributed.vocab_parallel import Smoothing
from npu_ce_jit.op.rows import OutputGrads
from npu_ce_jit.op.saved import require_unchanged, seen
from npu_ce_jit.op.schema import NONE, LossTerms, accumulated
from npu_ce_jit.op.torch_private import is_differentiating
from npu_ce_jit.parallel.arguments import agreed, checked_loss_terms, require_plain, required_group
from npu_ce_jit.torch_compat import is_autocast


def _over_others(label_smoothing: float, classes: int | Tensor) -> float | Tensor:
    """s = label_smoothing * C / (C - 1), so that the other classes get label_smoothing together; for C = 1, all."""
    others = max(classes - 1, 1) if isinstance(classes, int) else (classes - 1).clamp(min=1)
    return label_smoothing * classes / others


_FORMULAS: dict[str, Smoothing] = {"torch": vocab_parallel.as_given, "megatron": _over_others}


def vocab_parallel_cross_entropy(
    local_logits: Tensor,
    target: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    label_smoothing_formula: str = "torch",
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    loss_dtype: torch.dtype | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    """`npu_ce_jit.cross_entropy` of logits whose classes a group shares, as a column-parallel head leaves them.

    Two collectives forward (a max and a sum of a few numbers a row), none backward; in eager mode on a CPU one more,
    of four numbers. Nothing of the logits' size is written but their gradient.

    Args:
        local_logits: this rank's classes `[..., C_rank]`, those of rank 0 first, with any number of leading
            dimensions, as Megatron's `[s, b, V/tp]`; float16, bfloat16, float32 (and float64 on CPU). Ranks may have
            different numbers of classes, or none. Copied where no `[N, C_rank]` view exists.
        target: classes of the whole vocabulary `[...]`, int64 or int32, the same on every rank.
        group: the process group whose ranks share the classes; None for the default group.
        weight: the weights of this rank's classes, `[C_rank]`, or of all, `[C]`; on every rank or on none. `[C]` costs
            one more small collective, except in eager mode on a CPU.
        reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale, loss_dtype: as for
            `npu_ce_jit.cross_entropy`; the same on every rank.
        label_smoothing_formula: "torch" for `(1 - s) loss - s mean(log p)` with s = label_smoothing; "megatron" for
            Megatron-core's s = label_smoothing * C / (C - 1). Its mean is over the classes of all ranks here;
            Megatron-core takes the C and the mean of each rank's own classes, so that its loss differs from rank to
            rank.
        inplace_backward: backward writes the gradient over local_logits, which must be contiguous; as for
            `npu_ce_jit.cross_entropy`.

    Returns:
        The loss of the whole vocabulary, the same on every rank: 0-d for mean and sum, `[...]` for none. Its gradient
        is that of this rank's logits, to first order.

    Raises:
        As `npu_ce_jit.cross_entropy` where this rank's tensors are wrong, and NotImplementedError for a derivative of
        the gradient. In eager mode on a CPU, the other ranks then raise RuntimeError, which says what was wrong on
        which rank, and all ranks do where their calls differ; elsewhere the others wait for the rank that has left.
        IndexError for a target out of range on CPU, on every rank; elsewhere and under torch.compile its loss and
        gradient are NaN.
        Where a rank never makes the call, torch.distributed's own error, after its timeout.

    Source: docs/distributed.md; label smoothing of Megatron-core's vocab_parallel_cross_entropy.
    """
    group = required_group(group)

    def check() -> _Call:
        require_plain(local_logits=local_logits, target=target)
        row_checks.check_shard(local_logits, target, weight)
        dtype = loss_dtype
        if dtype is None and local_logits.dtype in HALVES and is_autocast(local_logits.device.type):
            dtype = torch.float32
        terms = checked_loss_terms(
            local_logits, weight, dtype, reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale
        )
        if label_smoothing_formula not in _FORMULAS:
            raise ValueError(f"expected label_smoothing_formula 'torch' or 'megatron', got {label_smoothing_formula!r}")
        if inplace_backward:
            row_checks.check_inplace_blocks(local_logits, [local_logits], "local_logits")
        return _Call(
            *flat_rows(local_logits, target), accumulated(weight, local_logits), terms, label_smoothing_formula,
            dtype or local_logits.dtype,
        )  # fmt: skip

    call, shard = agreed("vocab_parallel_cross_entropy", local_logits, group, check)
    weights, classes = call.weight, call.input.shape[1]  # call.classes is a property, which torch 2.10 does not trace
    if weights is not None and len(weights) != classes:
        shard, weights = vocab_parallel.own_weights(classes, weights, group, shard)
    loss: Tensor = _VocabParallelCrossEntropy.apply(  # type: ignore[no-untyped-call]
        call.input, call.target, weights, call, group, shard, inplace_backward
    )
    return loss.to(call.loss_dtype).view(target.shape if call.terms.reduction == NONE else ())


class _Call(NamedTuple):
    input: Tensor
    target: Tensor
    weight: Tensor | None
    terms: LossTerms
    formula: str
    loss_dtype: torch.dtype

    @property
    def classes(self) -> int:
        return self.input.shape[1]

    @property
    def shared(self) -> dict[str, object]:
        return {**self.terms.as_dict(), "label_smoothing_formula": self.formula, "loss_dtype": self.loss_dtype}


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Profilers and `grad_fn` show this name."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        call: _Call,
        group: dist.ProcessGroup,
        shard: VocabRange | None,
        inplace_backward: bool,
    ) -> Tensor:
        terms, smoothing = call.terms, _FORMULAS[call.formula]
        rows, shard = vocab_parallel.forward(input, target, weight, terms, 0, (group,), shard, smoothing)
        valid = target != terms.ignore_index
        denominators = torch.stack((rows.target_weight.sum(), valid.sum().to(rows.ce.dtype)))
        loss, _, _ = vocab_parallel.reduced(rows.ce, rows.row_stats.sum(0), valid, denominators, terms)
        ctx.terms, ctx.smoothing, ctx.group, ctx.seen = terms, smoothing, group, seen(input, target, weight)
        ctx.over_logits = OverLogits(input, inplace_backward)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, weight, rows.row_stats, rows.target_weight, denominators, *shard)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        (grad_loss,) = grad_outputs
        if grad_loss is None or not ctx.needs_input_grad[0]:
            return (None,) * 7
        ctx.over_logits.require_unspent()
        input, target, weight, row_stats, target_weight, denominators, *of_shard = ctx.saved_tensors
        require_unchanged(ctx.seen, ("local_logits", "target", "weight"), (input, target, weight))
        if is_differentiating(grad_loss, input) and not torch.compiler.is_compiling():
            raise no_second_derivative("vocab_parallel_cross_entropy", "npu_ce_jit.cross_entropy is")
        in_place = ctx.over_logits.allowed(input)
        result = vocab_parallel.backward(
            OutputGrads(grad_loss, None, None, None, None), input.detach(), target, weight, row_stats, target_weight,
            None, denominators, ctx.terms, (ctx.group,), VocabRange(*of_shard), in_place=in_place,
            smoothing=ctx.smoothing,
        )  # fmt: skip
        if in_place:
            result = ctx.over_logits.spend(input)
        return result, *(None,) * 6
