# SPDX-License-Identifier: Apache-2.0
"""`vocab_parallel_linear_cross_entropy`: the loss of a linear layer whose classes a group shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.op import checks
from npu_ce_jit.op.linear.operator import FORWARD_HAS_THEM, output_mask, scaled
from npu_ce_jit.op.saved import require_unchanged, seen
from npu_ce_jit.op.schema import LossTerms, accumulated
from npu_ce_jit.op.torch_private import is_differentiating
from npu_ce_jit.parallel.arguments import checked_loss_terms, no_derivative, require_plain, required_group


def vocab_parallel_linear_cross_entropy(
    input: Tensor,
    local_linear_weight: Tensor,
    target: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    local_linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    """`npu_ce_jit.linear_cross_entropy` of a linear layer whose classes a group shares.

    In chunks of rows: this rank's logits never exist whole. One small collective at the start (one more with weights),
    two a chunk, and one that adds up the gradient of input; where backward makes the logits again, as
    `npu_ce_jit.linear_cross_entropy` says, the same once more.

    Args:
        input: `[N, in_features]`, the same on every rank, and so is its gradient.
        local_linear_weight: this rank's classes `[C_rank, in_features]`, those of rank 0 first.
        target, group, weight: as for `vocab_parallel_cross_entropy`.
        local_linear_bias: `[C_rank]`; on every rank or on none.
        reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale, loss_dtype: as for
            `npu_ce_jit.linear_cross_entropy`; the same on every rank.

    Returns:
        The loss of the whole vocabulary, the same on every rank: 0-d for mean and sum, `[N]` for none.

    Raises:
        As `vocab_parallel_cross_entropy`.

    Source: docs/distributed.md.
    """
    require_plain(input=input, local_linear_weight=local_linear_weight, target=target)
    checks.check_linear(input, local_linear_weight, local_linear_bias, target, weight, may_be_empty=True)
    terms = checked_loss_terms(
        input, weight, loss_dtype, reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale
    )
    layer = (input, local_linear_weight, local_linear_bias)
    mask = output_mask(layer, terms) if is_differentiating(*layer) else [False] * 3
    loss: Tensor = _VocabParallelLinear.apply(  # type: ignore[no-untyped-call]
        *layer, target, accumulated(weight, input), terms, mask, required_group(group)
    )
    return loss.to(loss_dtype or input.dtype)


_OPERANDS = ("input", "local_linear_weight", "local_linear_bias", "target", "weight")


class _VocabParallelLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *operands, ctx.terms, mask, ctx.group = arguments
        loss, *gradients = _linear(operands, None, ctx.terms, ctx.group, mask)
        ctx.has_gradients, ctx.seen = any(mask), seen(*operands)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, *gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        (grad_loss,) = grad_outputs
        if grad_loss is None:
            return (None,) * 8
        saved = ctx.saved_tensors
        operands, gradients = saved[:5], saved[5:]
        if is_differentiating(grad_loss, *operands[:3]):
            raise no_derivative("vocab_parallel_linear_cross_entropy")
        wanted = list(ctx.needs_input_grad[:3])
        if ctx.has_gradients:
            gradients = scaled(gradients, grad_loss, wanted)
        else:
            require_unchanged(ctx.seen, _OPERANDS, operands, FORWARD_HAS_THEM)
            _, *gradients = _linear(operands, grad_loss, ctx.terms, ctx.group, wanted)
        return (*(g if asked else None for g, asked in zip(gradients, wanted, strict=True)), *(None,) * 5)


def _linear(
    operands: Sequence[Any], grad_loss: Tensor | None, terms: LossTerms, group: dist.ProcessGroup, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from npu_ce_jit.op.distributed import vocab_parallel_linear
    from npu_ce_jit.op.linear import chunks

    input, linear_weight, linear_bias, target, weight = operands
    problem = chunks.Problem(input, linear_weight, linear_bias, target, weight, grad_loss, terms)
    return vocab_parallel_linear.linear(
        problem, (group,), (), vocab_parallel_linear.shard_of(problem, group), 0, 0, mask
    )
