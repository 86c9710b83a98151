# SPDX-License-Identifier: Apache-2.0
"""`vocab_parallel_cross_entropy`: the loss of logits whose classes a group shares."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.api.cross_entropy import HALVES
from npu_ce_jit.op import checks
from npu_ce_jit.op.distributed import vocab_parallel
from npu_ce_jit.op.distributed.vocab_parallel import Shard
from npu_ce_jit.op.rows import Gradients
from npu_ce_jit.op.saved import require_unchanged, seen
from npu_ce_jit.op.schema import LossTerms, accumulated
from npu_ce_jit.op.torch_private import is_differentiating
from npu_ce_jit.parallel.arguments import checked_loss_terms, no_derivative, require_plain, required_group
from npu_ce_jit.torch_compat import is_autocast


def vocab_parallel_cross_entropy(
    local_logits: Tensor,
    target: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    """`npu_ce_jit.cross_entropy` of logits whose classes a group shares, as a column-parallel head leaves them.

    Two collectives forward (a max and a sum of a few numbers a row), none backward. Nothing of the logits' size is
    written but their gradient.

    Args:
        local_logits: this rank's classes `[N, C_rank]`, those of rank 0 first; float16, bfloat16, float32 (and float64
            on CPU). Ranks may have different numbers of classes, none too.
        target: classes of the whole vocabulary `[N]`, int64 or int32, the same on every rank.
        group: whose ranks have the other classes; None for all.
        weight: the weights of this rank's classes, `[C_rank]`; on every rank or on none.
        reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale, loss_dtype: as for
            `npu_ce_jit.cross_entropy`; the same on every rank.

    Returns:
        The loss of the whole vocabulary, the same on every rank: 0-d for mean and sum, `[N]` for none. Its gradient is
        that of this rank's logits, to first order.

    Raises:
        As `npu_ce_jit.cross_entropy` where this rank's tensors are wrong, and NotImplementedError for a derivative of
        the gradient. IndexError for a target out of range on CPU, on every rank; elsewhere and under torch.compile its
        loss and gradient are NaN. Where a rank does not come, torch.distributed's own error, after its timeout.

    Source: docs/distributed.md.
    """
    require_plain(local_logits=local_logits, target=target)
    checks.check_shard(local_logits, target, weight)
    if loss_dtype is None and local_logits.dtype in HALVES and is_autocast(local_logits.device.type):
        loss_dtype = torch.float32
    terms = checked_loss_terms(
        local_logits, weight, loss_dtype, reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale
    )
    loss: Tensor = _VocabParallelCrossEntropy.apply(  # type: ignore[no-untyped-call]
        local_logits, target, accumulated(weight, local_logits), terms, required_group(group)
    )
    return loss.to(loss_dtype or local_logits.dtype)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Profilers and `grad_fn` show this name."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, terms: LossTerms, group: dist.ProcessGroup
    ) -> Tensor:
        rows, shard = vocab_parallel.forward(input, target, weight, terms, 0, (group,))
        valid = target != terms.ignore_index
        denominators = torch.stack((rows.target_weight.sum(), valid.sum().to(rows.ce.dtype)))
        loss, _, _ = vocab_parallel.reduced(rows.ce, rows.row_stats.sum(0), valid, denominators, terms)
        ctx.terms, ctx.group, ctx.seen = terms, group, seen(input, target, weight)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, weight, rows.row_stats, rows.target_weight, denominators, *shard)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        (grad_loss,) = grad_outputs
        if grad_loss is None or not ctx.needs_input_grad[0]:
            return (None,) * 5
        input, target, weight, row_stats, target_weight, denominators, *of_shard = ctx.saved_tensors
        require_unchanged(ctx.seen, ("local_logits", "target", "weight"), (input, target, weight))
        if is_differentiating(grad_loss, input) and not torch.compiler.is_compiling():
            raise no_derivative("vocab_parallel_cross_entropy")
        gradients = Gradients(grad_loss, None, None, None, None)
        result = vocab_parallel.backward(
            gradients, input, target, weight, row_stats, target_weight, None, denominators, ctx.terms,
            (ctx.group,), Shard(*of_shard),
        )  # fmt: skip
        return result, None, None, None, None
