# SPDX-License-Identifier: Apache-2.0
"""The loss of a causal language model, with the arguments that Hugging Face transformers passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.api.cross_entropy import HALVES, cross_entropy
from npu_ce_jit.op.checks import require_tensor


def causal_lm_loss(
    logits: Any,
    labels: Tensor,
    vocab_size: int | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    inplace_backward: bool = False,
    **_ignored: Any,
) -> Tensor:
    """The loss that transformers computes for a causal language model, without its float32 copy of the logits.

    Serves as `Trainer(compute_loss_func=causal_lm_loss)` and as `model.loss_function = causal_lm_loss`; bind further
    options with `functools.partial`.

    Args:
        logits: `[..., T, vocab_size]`, or the model's output: its `logits` are taken, or the first of a tuple.
        labels: `[..., T]`, not shifted: position t is to predict label t + 1. Moved to the logits' device.
        vocab_size: the number of classes that the logits must have; None for no check.
        num_items_in_batch: the number that the sum of losses is divided by, of the items in all batches of a step; None
            for the mean of this batch.
        ignore_index: positions with this label add nothing.
        shift_labels: labels that are shifted already; then `labels` is not read.
        label_smoothing, z_loss, softcap, logit_scale, inplace_backward: as for `npu_ce_jit.cross_entropy`.
        _ignored: other keywords of a model's call, which models pass on, as they do to transformers' own loss.

    Returns:
        The loss, float32 (float64 for float64 logits), 0-d.

    Raises:
        TypeError: no logits, or no labels: a Trainer found none in its inputs.
        RuntimeError: vocab_size is not the logits'; and what `npu_ce_jit.cross_entropy` raises.

    Source: ForCausalLMLoss and Trainer of transformers 5.
    """
    logits = _logits_of(logits)
    classes = logits.shape[-1]
    if vocab_size is not None and vocab_size != classes:
        raise RuntimeError(
            f"expected logits of shape [..., vocab_size={vocab_size}], got {list(logits.shape)}; "
            "pass logits[..., :vocab_size] of a padded vocabulary, or vocab_size=None"
        )
    loss = cross_entropy(
        logits.reshape(-1, classes),
        next_labels(labels, shift_labels, ignore_index).to(logits.device).reshape(-1),
        reduction="mean" if num_items_in_batch is None else "sum",
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
        loss_dtype=torch.float32 if logits.dtype in HALVES else None,
        inplace_backward=inplace_backward,
    )
    assert isinstance(loss, Tensor)
    return over_items(loss, num_items_in_batch)


def next_labels(labels: Tensor, shift_labels: Tensor | None, ignore_index: int) -> Tensor:
    """The label of each position, `[..., T]`: that of the next one, unless they are shifted already."""
    if shift_labels is not None:
        return shift_labels
    require_tensor("labels", labels)
    nothing_follows = labels.new_full((*labels.shape[:-1], 1), ignore_index)
    return torch.cat((labels[..., 1:], nothing_follows), -1)


def over_items(loss: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """A sum of losses over num_items_in_batch, the items of a step's batches; a mean as it is, where that is None."""
    if num_items_in_batch is None:
        return loss
    return loss / (num_items_in_batch.to(loss.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch)


def _logits_of(outputs: Any) -> Tensor:
    if isinstance(outputs, dict):  # as transformers' ModelOutput is
        outputs = outputs.get("logits")
    elif isinstance(outputs, tuple | list):
        outputs = outputs[0] if outputs else None
    elif not isinstance(outputs, Tensor):
        outputs = getattr(outputs, "logits", outputs)
    require_tensor("logits", outputs)
    return outputs  # type: ignore[no-any-return]
