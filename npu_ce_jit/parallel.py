# SPDX-License-Identifier: Apache-2.0
"""The losses where each rank of a process group has some of the classes: tensor parallelism of the vocabulary.

On torch.distributed's own collectives: gloo on CPU, hccl on NPU. Not imported by `import npu_ce_jit`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.api.cross_entropy import HALVES
from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.op import checks
from npu_ce_jit.op.distributed import vocab_parallel
from npu_ce_jit.op.distributed.vocab_parallel import Shard
from npu_ce_jit.op.linear.operator import FORWARD_HAS_THEM, output_mask, scaled
from npu_ce_jit.op.operators import checked_terms
from npu_ce_jit.op.rows import Gradients
from npu_ce_jit.op.saved import require_unchanged, seen
from npu_ce_jit.op.schema import LossTerms, accumulated
from npu_ce_jit.op.torch_private import is_differentiating
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
    _require_plain(local_logits=local_logits, target=target)
    checks.check_shard(local_logits, target, weight)
    if loss_dtype is None and local_logits.dtype in HALVES and is_autocast(local_logits.device.type):
        loss_dtype = torch.float32
    terms = _checked_terms(
        local_logits, weight, loss_dtype, reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale
    )
    loss: Tensor = _VocabParallelCrossEntropy.apply(  # type: ignore[no-untyped-call]
        local_logits, target, accumulated(weight, local_logits), terms, _required(group)
    )
    return loss.to(loss_dtype or local_logits.dtype)


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
    _require_plain(input=input, local_linear_weight=local_linear_weight, target=target)
    checks.check_linear(input, local_linear_weight, local_linear_bias, target, weight, may_be_empty=True)
    terms = _checked_terms(
        input, weight, loss_dtype, reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale
    )
    layer = (input, local_linear_weight, local_linear_bias)
    mask = output_mask(layer, terms) if is_differentiating(*layer) else [False] * 3
    loss: Tensor = _VocabParallelLinear.apply(  # type: ignore[no-untyped-call]
        *layer, target, accumulated(weight, input), terms, mask, _required(group)
    )
    return loss.to(loss_dtype or input.dtype)


def _require_plain(**tensors: object) -> None:
    for name, tensor in tensors.items():
        checks.require_tensor(name, tensor)
        dtensors = sys.modules.get("torch.distributed.tensor")  # where nobody imported it, nobody has one
        if dtensors is not None and isinstance(tensor, dtensors.DTensor):
            raise RuntimeError(
                f"expected {name} to be this rank's own part, a plain tensor, got a DTensor; pass {name}.to_local(), "
                "or DTensors alone to the function of npu_ce_jit itself"
            )


def _checked_terms(
    input: Tensor,
    weight: Tensor | None,
    loss_dtype: torch.dtype | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
) -> LossTerms:
    """Of tensors whose shapes have been checked."""
    ignore_index, label_smoothing, z_loss, softcap, logit_scale = plain_numbers(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
    )
    checks.check_loss_dtype(input, loss_dtype)
    checks.check_weight_has_no_gradient(weight)
    # Past the cache, which Dynamo warns of.
    return checked_terms.__wrapped__(reduction, ignore_index, label_smoothing, "z_loss", z_loss, softcap, logit_scale)


def _required(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if group is not None:
        return group
    if not dist.is_initialized():
        raise RuntimeError("expected a process group, got none: call torch.distributed.init_process_group first")
    return dist.distributed_c10d._get_default_group()


def _no_derivative(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"expected no derivative of the gradient of {name}, got a request for one (create_graph=True); "
        f"npu_ce_jit.{name.removeprefix('vocab_parallel_')} is differentiable to any order"
    )


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
            raise _no_derivative("vocab_parallel_cross_entropy")
        gradients = Gradients(grad_loss, None, None, None, None)
        result = vocab_parallel.backward(
            gradients, input, target, weight, row_stats, target_weight, None, denominators, ctx.terms,
            (ctx.group,), Shard(*of_shard),
        )  # fmt: skip
        return result, None, None, None, None


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
            raise _no_derivative("vocab_parallel_linear_cross_entropy")
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
