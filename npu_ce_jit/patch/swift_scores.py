# SPDX-License-Identifier: Apache-2.0
"""`npu_ce_jit.patch.swift`: ms-swift's log-probabilities and entropies over Megatron's tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.api.token_logprobs import TokenLogprobs
from npu_ce_jit.parallel import vocab_parallel_token_logprobs
from npu_ce_jit.patch.exchange import Patch, exchange, framework, require_parameters
from npu_ce_jit.patch.importers import everywhere
from npu_ce_jit.patch.megatron_losses import tensor_parallel_group

_STUDIED = "4.6.0"


def swift() -> Patch:
    """Makes Megatron-SWIFT's trainers score tokens of sharded logits with our kernels, in one pass for both results.

    Exchanges compute_logps_and_entropy_from_logits, which GRPO calls. Results are float32; log-probabilities are 0
    where a label is -100, entropies are of all positions, as ms-swift's; the logits are left as they are, where
    ms-swift's overwrites them. It imports Megatron-core; with MindSpeed, import its adaptor before. Trainers without
    Megatron are trl's and transformers': `npu_ce_jit.patch.transformers(model)`.

    Returns:
        The Patch that undoes it.

    Raises:
        PatchError: ms-swift is not installed, or its function is not the one that is known.

    Source: swift/megatron/trainers/vocab_parallel_utils.py of ms-swift 4.6.0.
    """
    module = framework("swift.megatron.trainers.vocab_parallel_utils", _STUDIED)
    name = "compute_logps_and_entropy_from_logits"
    parameters = "logits, labels, compute_entropy, entropy_chunk_size"
    require_parameters(name, getattr(module, name), parameters, f"ms-swift {_STUDIED}")
    return exchange("npu_ce_jit.patch.swift()", *everywhere(module, {name: _scores}))


def _scores(
    _theirs: Any,
    logits: Tensor,
    labels: Tensor,
    compute_entropy: bool = False,
    entropy_chunk_size: int = 512,  # noqa: ARG001  ms-swift's parameter
) -> tuple[Tensor, Tensor | None]:
    is_masked = labels == -100
    found = vocab_parallel_token_logprobs(
        logits, labels.masked_fill(is_masked, 0), tensor_parallel_group(), return_entropy=compute_entropy
    )
    logprobs, entropy, _ = found if isinstance(found, TokenLogprobs) else (found, None, None)
    return torch.where(is_masked, 0, logprobs), entropy
