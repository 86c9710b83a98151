# SPDX-License-Identifier: Apache-2.0
"""`vocab_parallel_linear_cross_entropy`: the loss of a linear layer whose classes a group shares."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.api.cross_entropy import CrossEntropyOutput
from npu_ce_jit.api.linear_cross_entropy import call_operator
from npu_ce_jit.op.distributed import vocab_parallel
from npu_ce_jit.parallel.arguments import LinearCall, agreed, checked_loss_terms, require_plain, required_group


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

    It works in chunks of rows, so this rank's logits never exist whole. There is one small collective at the start (one
    more with weights), two a chunk (three with return_argmax), and one that adds up the gradient of input; where
    backward makes the logits again, as `npu_ce_jit.linear_cross_entropy` says, the same once more. Under torch.compile
    it is one node.

    Args:
        input: `[..., in_features]`, the same on every rank, and so is its gradient.
        local_linear_weight: this rank's classes `[C_rank, in_features]`, those of rank 0 first.
        target, group, weight: as for `vocab_parallel_cross_entropy`.
        local_linear_bias: `[C_rank]`; some ranks may have one and others None.
        reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale, skip_ignored, loss_dtype: as for
            `npu_ce_jit.linear_cross_entropy`; the same on every rank.
        return_z_loss, return_lse, return_argmax, return_entropy: as there; argmax is a class of the whole vocabulary.

    Returns:
        As `npu_ce_jit.linear_cross_entropy`: of the whole vocabulary, the same on every rank.

    Raises:
        As `vocab_parallel_cross_entropy`.

    Source: docs/distributed.md.
    """
    group = required_group(group)
    requests: dict[str, object] = {
        "return_z_loss": return_z_loss,
        "return_lse": return_lse,
        "return_argmax": return_argmax,
        "return_entropy": return_entropy,
    }

    def check() -> LinearCall:
        require_plain(input=input, local_linear_weight=local_linear_weight, target=target)
        terms = checked_loss_terms(
            input, weight, loss_dtype, reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale
        )
        options = {**terms.as_dict(), **requests, "skip_ignored": skip_ignored, "loss_dtype": loss_dtype}
        return LinearCall.checked(input, local_linear_weight, target, local_linear_bias, weight, terms, options)

    call, shard = agreed("vocab_parallel_linear_cross_entropy", input, group, check)
    if weight is not None and len(weight) != call.classes:
        _, weight = vocab_parallel.own_weights(call.classes, weight, group, shard)
    found = call_operator(
        input, local_linear_weight, target, local_linear_bias, weight, loss_dtype,
        **{**call.terms.as_dict(), "reduction": reduction, "softcap": call.terms.softcap or None},
        **requests, skip_ignored=skip_ignored, group=group.group_name,
    )  # fmt: skip
    return found if any(requests.values()) else found.loss
