# SPDX-License-Identifier: Apache-2.0
"""`vocab_parallel_linear_cross_entropy`: the loss of a linear layer whose classes a group shares."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.api.cross_entropy import CrossEntropyOutput
from npu_ce_jit.api.linear_cross_entropy import call_operator
from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.parallel.arguments import require_plain, required_group


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
    return_z_loss: bool = False,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_lse: bool = False,
    return_argmax: bool = False,
    return_entropy: bool = False,
    skip_ignored: bool = False,
    loss_dtype: torch.dtype | None = None,
) -> Tensor | CrossEntropyOutput:
    """`npu_ce_jit.linear_cross_entropy` of a linear layer whose classes a group shares.

    In chunks of rows: this rank's logits never exist whole. One small collective at the start (one more with weights),
    two a chunk (three with return_argmax), and one that adds up the gradient of input; where backward makes the logits
    again, as `npu_ce_jit.linear_cross_entropy` says, the same once more. One node under torch.compile.

    Args:
        input: `[..., in_features]`, the same on every rank, and so is its gradient.
        local_linear_weight: this rank's classes `[C_rank, in_features]`, those of rank 0 first.
        target, group, weight: as for `vocab_parallel_cross_entropy`.
        local_linear_bias: `[C_rank]`; on every rank or on none.
        reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale, skip_ignored, loss_dtype: as for
            `npu_ce_jit.linear_cross_entropy`; the same on every rank.
        return_z_loss, return_lse, return_argmax, return_entropy: as there; argmax is a class of the whole vocabulary.

    Returns:
        As `npu_ce_jit.linear_cross_entropy`: of the whole vocabulary, the same on every rank.

    Raises:
        As `vocab_parallel_cross_entropy`.

    Source: docs/distributed.md.
    """
    require_plain(input=input, local_linear_weight=local_linear_weight, target=target)
    ignore_index, label_smoothing, z_loss, softcap, logit_scale = plain_numbers(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
    )
    found = call_operator(
        input,
        local_linear_weight,
        target,
        local_linear_bias,
        weight,
        loss_dtype,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        return_z_loss=return_z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
        return_lse=return_lse,
        return_argmax=return_argmax,
        return_entropy=return_entropy,
        skip_ignored=skip_ignored,
        group=required_group(group).group_name,
    )
    returns = return_z_loss or return_lse or return_argmax or return_entropy
    return found if returns else found.loss
