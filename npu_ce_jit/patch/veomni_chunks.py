# SPDX-License-Identifier: Apache-2.0
"""`npu_ce_jit.patch.veomni`: VeOmni's chunked loss and chunked log-probabilities, from hidden states."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npu_ce_jit.api.cross_entropy import HALVES
from npu_ce_jit.api.linear_cross_entropy import linear_cross_entropy
from npu_ce_jit.api.linear_token_logprobs import linear_token_logprobs
from npu_ce_jit.api.token_logprobs import TokenLogprobs
from npu_ce_jit.patch.exchange import Patch, exchange, framework, require_parameters
from npu_ce_jit.patch.importers import everywhere

_STUDIED = "0.1.12"
_LOGPROBS = "hidden_states, weights, labels, chunk_size, ignore_index, shift_labels, temperature"
_LOSS = (
    "hidden_states, weights, labels, chunk_size, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs"
)


def veomni() -> Patch:
    """Makes VeOmni's chunk_loss_function and chunk_logprobs_function compute with `linear_cross_entropy`'s kernels.

    cross_entropy_loss_implementation="chunk_loss" (or "npu") trains with the first, return_log_probs=True calls the
    second. Labels are shifted, and the loss is reduced over sequence-parallel ranks, as VeOmni does; results are
    float32. chunk_size is ignored: rows are chunked by memory. "eager" and "liger_kernel" stay as they are; for the
    latter, call `npu_ce_jit.patch.liger()`.

    Returns:
        The Patch that undoes it.

    Raises:
        PatchError: VeOmni is not installed, or its functions are not those that are known.

    Source: veomni/ops/kernels/cross_entropy/chunk_loss.py and chunk_logprobs.py of VeOmni 0.1.12.
    """
    loss = framework("veomni.ops.kernels.cross_entropy.chunk_loss", _STUDIED)
    logprobs = framework("veomni.ops.kernels.cross_entropy.chunk_logprobs", _STUDIED)
    for module, name, parameters in (
        (loss, "chunk_loss_function", _LOSS),
        (logprobs, "chunk_logprobs_function", _LOGPROBS),
    ):
        require_parameters(name, getattr(module, name), parameters, f"veomni {_STUDIED}")

    def chunk_loss(
        _theirs: Any,
        hidden_states: Tensor,
        weights: Tensor,
        labels: Tensor,
        chunk_size: int = 1024,  # noqa: ARG001  VeOmni's parameter
        vocab_size: int | None = None,  # noqa: ARG001
        num_items_in_batch: int | None = None,  # noqa: ARG001
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,  # noqa: ARG001
        **_unused: Any,
    ) -> tuple[Tensor, None]:
        """The mean over the labels, whatever num_items_in_batch is, and without shift_labels, as VeOmni's."""
        is_shifted = loss.get_parallel_state().sp_enabled
        found = linear_cross_entropy(
            hidden_states if is_shifted else hidden_states[..., :-1, :],
            weights,
            labels if is_shifted else labels[..., 1:],
            ignore_index=ignore_index,
            loss_dtype=torch.float32 if hidden_states.dtype in HALVES else None,
        )
        assert isinstance(found, Tensor), "nothing beside the loss was asked for"
        if is_shifted:
            found = loss.reduce_sequence_parallel_loss(found, (labels != ignore_index).sum())
        return found, None

    def chunk_logprobs(
        _theirs: Any,
        hidden_states: Tensor,
        weights: Tensor,
        labels: Tensor,
        chunk_size: int = 1024,  # noqa: ARG001  VeOmni's parameter
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Where the labels are shifted here, the last position has no label, and its results are 0."""
        target = shift_labels
        if target is None:
            is_shifted = logprobs.get_parallel_state().sp_enabled
            target = labels if is_shifted else F.pad(labels[..., 1:], (0, 1), value=ignore_index)
        found = linear_token_logprobs(
            hidden_states, weights, target, temperature=temperature, ignore_index=ignore_index, return_entropy=True
        )
        assert isinstance(found, TokenLogprobs), "the entropy was asked for"
        assert found.entropy is not None
        return found.logprobs, found.entropy

    return exchange(
        "npu_ce_jit.patch.veomni()",
        *everywhere(loss, {"chunk_loss_function": chunk_loss}),
        *everywhere(logprobs, {"chunk_logprobs_function": chunk_logprobs}),
    )
