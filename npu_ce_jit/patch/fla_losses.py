# SPDX-License-Identifier: Apache-2.0
"""`npu_ce_jit.patch.fla`: flash-linear-attention's cross entropy, from logits and from hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.api.cross_entropy import HALVES, CrossEntropyOutput, cross_entropy
from npu_ce_jit.api.linear_cross_entropy import linear_cross_entropy
from npu_ce_jit.patch.exchange import Patch, exchange, framework, require_parameters
from npu_ce_jit.patch.importers import everywhere

_STUDIED = "0.6.0"
_OF_LOGITS = (
    "logits, target, label_smoothing, logit_scale, lse_square_scale, logit_softcapping, ignore_index, "
    "inplace_backward, process_group"
)
_OF_HIDDEN = (
    "x, target, weight, bias, ignore_index, label_smoothing, logit_scale, logit_softcapping, num_chunks, reduction, "
    "use_l2warp, l2_penalty_factor, accumulate_grad_in_fp32, process_group"
)


def fla() -> Patch:
    """Makes flash-linear-attention's losses, in its models and called directly, compute with our kernels.

    Exchanges cross_entropy_loss and fused_linear_cross_entropy_loss, which FusedCrossEntropyLoss and
    FusedLinearCrossEntropyLoss call. Results are float32; the z-loss beside the loss is for logging, without a
    gradient; a mean where every row is ignored is 0. From hidden states, the chunks' gradients are added up in the
    weight's dtype, whatever accumulate_grad_in_fp32 is, and num_chunks is ignored. With use_l2warp, and where a process
    group of more than one rank shares the vocabulary, flash-linear-attention's own functions answer.

    Returns:
        The Patch that undoes it.

    Raises:
        PatchError: flash-linear-attention is not installed, or its functions are not those that are known.

    Source: fla/modules/fused_cross_entropy/ops.py and fused_linear_cross_entropy/ops.py of 0.6.0.
    """
    of_logits = framework("fla.modules.fused_cross_entropy.ops", _STUDIED)
    of_hidden = framework("fla.modules.fused_linear_cross_entropy.ops", _STUDIED)
    for module, name, parameters in (
        (of_logits, "cross_entropy_loss", _OF_LOGITS),
        (of_hidden, "fused_linear_cross_entropy_loss", _OF_HIDDEN),
    ):
        require_parameters(name, getattr(module, name), parameters, f"flash-linear-attention {_STUDIED}")
    return exchange(
        "npu_ce_jit.patch.fla()",
        *everywhere(of_logits, {"cross_entropy_loss": _cross_entropy}),
        *everywhere(of_hidden, {"fused_linear_cross_entropy_loss": _fused_linear_cross_entropy}),
    )


def _cross_entropy(
    theirs: Callable[..., Any],
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    logit_softcapping: float | None = None,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> Any:
    if _is_shared(process_group):
        return theirs(
            logits, target, label_smoothing, logit_scale, lse_square_scale, logit_softcapping, ignore_index,
            inplace_backward, process_group,
        )  # fmt: skip
    found = cross_entropy(
        logits, target, None, "none", ignore_index, label_smoothing, z_loss=lse_square_scale, return_z_loss=True,
        softcap=logit_softcapping, logit_scale=logit_scale, loss_dtype=_loss_dtype(logits),
        inplace_backward=inplace_backward and logits.is_contiguous(),
    )  # fmt: skip
    assert isinstance(found, CrossEntropyOutput), "z_loss was asked for"
    assert found.z_loss is not None
    return found.loss, found.z_loss.detach()


def _fused_linear_cross_entropy(
    theirs: Callable[..., Any],
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcapping: float | None = None,
    num_chunks: int = 8,
    reduction: str = "mean",
    use_l2warp: bool = False,
    l2_penalty_factor: float = 1e-4,
    accumulate_grad_in_fp32: bool = True,
    process_group: dist.ProcessGroup | None = None,
) -> Any:
    if use_l2warp or _is_shared(process_group):
        return theirs(
            x, target, weight, bias, ignore_index, label_smoothing, logit_scale, logit_softcapping, num_chunks,
            reduction, use_l2warp, l2_penalty_factor, accumulate_grad_in_fp32, process_group,
        )  # fmt: skip
    loss = linear_cross_entropy(
        x, weight, target, linear_bias=bias, reduction=reduction, ignore_index=ignore_index,
        label_smoothing=label_smoothing, softcap=logit_softcapping, logit_scale=logit_scale, loss_dtype=_loss_dtype(x),
    )  # fmt: skip
    assert isinstance(loss, Tensor), "nothing beside the loss was asked for"
    return torch.where((target != ignore_index).any(), loss, 0)


def _is_shared(group: dist.ProcessGroup | None) -> bool:
    return group is not None and dist.get_world_size(group) > 1


def _loss_dtype(tensor: Tensor) -> torch.dtype | None:
    return torch.float32 if tensor.dtype in HALVES else None
