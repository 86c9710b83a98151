# SPDX-License-Identifier: Apache-2.0
"""`npu_ce_jit.patch.megatron`: Megatron-core's loss of logits whose classes the tensor-parallel ranks share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.log import warn
from npu_ce_jit.parallel import vocab_parallel_cross_entropy
from npu_ce_jit.patch.exchange import Patch, exchange, framework, require_parameters
from npu_ce_jit.patch.importers import everywhere
from npu_ce_jit.patch.vocabulary import in_vocabulary

STUDIED = "0.16.1"


def megatron(*, inplace_backward: bool = False) -> Patch:
    """Makes Megatron-core, and MindSpeed over it, compute the loss of sharded logits with our kernels.

    Exchanges vocab_parallel_cross_entropy and fused_vocab_parallel_cross_entropy, which GPTModel calls with logits
    `[s, b, V/tp]` and labels `[s, b]`. The loss is float32 `[s, b]` as theirs; neither a float32 copy of the logits nor
    their softmax is made, and the gradient has the logits' dtype (Megatron-core's fused loss always gives bfloat16). A
    label out of range, which theirs masks in another way, has loss 0 and no gradient. Transformer Engine's loss stays.

    label_smoothing is computed as by Megatron-core where one rank has all classes. Where ranks share them,
    Megatron-core smooths over each rank's classes, so its loss differs from rank to rank: such a call goes to
    Megatron-core's own function, with a RuntimeWarning.

    Call it after Megatron-core's models are imported or before; with MindSpeed, after its adaptor.

    Args:
        inplace_backward: backward writes the gradient over the logits, where they are contiguous. Another
            backward that has saved them raises; a plain read of them afterwards gives the gradient.

    Returns:
        The Patch that undoes it.

    Raises:
        PatchError: Megatron-core is not installed, or its functions are not those that are known.

    Source: megatron/core/tensor_parallel/cross_entropy.py and fusions/fused_cross_entropy.py of Megatron-core 0.16.1,
    and of NVIDIA/Megatron-LM at d98e8a64, where the first takes the group too.
    """
    plain = framework("megatron.core.tensor_parallel.cross_entropy", STUDIED)
    fused = framework("megatron.core.fusions.fused_cross_entropy", STUDIED)
    takes_group = "tp_group" in inspect.signature(plain.vocab_parallel_cross_entropy).parameters
    _require(plain, "vocab_parallel_cross_entropy", "label_smoothing, tp_group" if takes_group else "label_smoothing")
    _require(fused, "fused_vocab_parallel_cross_entropy", "tp_group")

    def loss(
        theirs: Callable[..., Tensor],
        vocab_parallel_logits: Tensor,
        target: Tensor,
        label_smoothing: float = 0.0,
        tp_group: dist.ProcessGroup | None = None,
    ) -> Tensor:
        group = tensor_parallel_group() if tp_group is None else tp_group
        ranks = dist.get_world_size(group)
        if label_smoothing and ranks > 1:
            warn(
                f"npu_ce_jit: expected label_smoothing 0 where {ranks} ranks share the classes, got {label_smoothing}: "
                "Megatron-core's own function answers, which smooths over each rank's classes. That of all is "
                "npu_ce_jit.parallel.vocab_parallel_cross_entropy(..., label_smoothing_formula='megatron')."
            )
            given = (label_smoothing, tp_group) if takes_group else (label_smoothing,)
            return theirs(vocab_parallel_logits, target, *given)
        return vocab_parallel_cross_entropy(
            vocab_parallel_logits,
            in_vocabulary(target, vocab_parallel_logits.shape[-1] * ranks),
            group,
            reduction="none",
            label_smoothing=label_smoothing,
            label_smoothing_formula="megatron",
            loss_dtype=None if vocab_parallel_logits.dtype is torch.float64 else torch.float32,
            inplace_backward=inplace_backward and vocab_parallel_logits.is_contiguous(),
        )

    def fused_loss(
        theirs: Callable[..., Tensor], vocab_parallel_logits: Tensor, target: Tensor, tp_group: dist.ProcessGroup
    ) -> Tensor:
        return loss(theirs, vocab_parallel_logits, target, tp_group=tp_group)

    return exchange(
        f"npu_ce_jit.patch.megatron({'inplace_backward=True' if inplace_backward else ''})",
        *everywhere(plain, {"vocab_parallel_cross_entropy": loss}),
        *everywhere(fused, {"fused_vocab_parallel_cross_entropy": fused_loss}),
    )


def tensor_parallel_group() -> Any:
    """The tensor-parallel group of Megatron-core in this process."""
    return framework("megatron.core.parallel_state", STUDIED).get_tensor_model_parallel_group()


def _require(module: Any, name: str, more: str) -> None:
    require_parameters(
        name, getattr(module, name), f"vocab_parallel_logits, target, {more}", f"Megatron-core {STUDIED}"
    )
