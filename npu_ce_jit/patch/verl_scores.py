# SPDX-License-Identifier: Apache-2.0
"""`npu_ce_jit.patch.verl`: verl's log-probabilities and entropies, from logits, from hidden states and over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from npu_ce_jit.api.linear_token_logprobs import linear_token_logprobs
from npu_ce_jit.api.token_logprobs import TokenLogprobs, token_logprobs
from npu_ce_jit.parallel import vocab_parallel_linear_token_logprobs, vocab_parallel_token_logprobs
from npu_ce_jit.patch.exchange import Change, Patch, exchange, framework, require_parameters
from npu_ce_jit.patch.importers import everywhere
from npu_ce_jit.patch.megatron_losses import tensor_parallel_group
from npu_ce_jit.patch.vocabulary import in_vocabulary

_STUDIED = "0.9.1"


def verl(*, megatron: bool = False) -> Patch:
    """Makes verl compute log-probabilities, entropies and sums of squared probabilities with our kernels.

    From logits: logprobs_from_logits, its _v2 and _torch_npu, entropy_from_logits, entropy_from_logits_with_chunking,
    calculate_sum_pi_squared_from_logits. From hidden states, without logits: linear_cross_entropy of verl.utils.kernel
    (Triton's; its shards over a process group too) and FusedLinearForPPO, whichever backend it was made for.

    Call it before verl's engines are made: those of FSDP keep the entropy function, or a compiled one. Results are
    float32 (float64 for float64) where verl's have the logits' dtype, and 0 where a label is -100; logits may have any
    number of dimensions. chunk_size is ignored: nothing of the logits' size is made.

    inplace_backward writes the gradient over the logits where they are contiguous, as flash-attn's function in verl
    does. Another backward that has saved them raises; a plain read of them afterwards gives the gradient.

    Args:
        megatron: also the functions of verl.utils.megatron.tensor_parallel, for logits whose classes are shared over
            the tensor-parallel group. That imports Megatron-core; with MindSpeed, import its adaptor before.

    Returns:
        The Patch that undoes it.

    Raises:
        PatchError: verl or Megatron-core is not installed, or a function of verl is not the one that is known.

    Source: verl/utils/torch_functional.py, utils/experimental/torch_functional.py, utils/kernel/linear_cross_entropy.py
    and utils/megatron/tensor_parallel.py of verl 0.9.1.
    """
    changes = everywhere(_known("verl.utils.torch_functional", _OF_LOGITS), _answers(_OF_LOGITS))
    kernel = framework("verl.utils.kernel.linear_cross_entropy", _STUDIED)
    _require("LinearCrossEntropy.forward", kernel.LinearCrossEntropy.forward, f"ctx, {_OF_HIDDEN}")
    changes += everywhere(kernel, {"linear_cross_entropy": _linear_cross_entropy})
    ppo = framework("verl.utils.experimental.torch_functional", _STUDIED).FusedLinearForPPO
    _require("FusedLinearForPPO.forward", ppo.forward, "self, hidden_states, vocab_weights, input_ids, temperature")
    changes.append(Change(ppo, "forward", _fused_linear_for_ppo))
    if megatron:
        module = _known("verl.utils.megatron.tensor_parallel", _OF_SHARDS)
        changes += everywhere(module, _answers(_OF_SHARDS))
    return exchange(f"npu_ce_jit.patch.verl({'megatron=True' if megatron else ''})", *changes)


def _known(module: str, functions: dict[str, tuple[str, Callable[..., Any]]]) -> Any:
    """verl's module; PatchError where its functions do not have the parameters that are known."""
    found = framework(module, _STUDIED)
    for name, (parameters, _) in functions.items():
        _require(name, getattr(found, name, _absent), parameters)
    return found


def _absent() -> None:
    """Stands for a function that this verl does not have."""


def _require(name: str, function: Any, parameters: str) -> None:
    require_parameters(name, function, parameters, f"verl {_STUDIED}")


def _answers(functions: dict[str, tuple[str, Callable[..., Any]]]) -> dict[str, Callable[..., Any]]:
    return {name: answer for name, (_, answer) in functions.items()}


def _logprobs_from_logits(_theirs: Any, logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Any:
    return token_logprobs(logits, labels, inplace_backward=inplace_backward and logits.is_contiguous())


def _logprobs(_theirs: Any, logits: Tensor, labels: Tensor) -> Any:
    return token_logprobs(logits, labels)


def _entropy(_theirs: Any, logits: Tensor, chunk_size: int = 0) -> Any:  # noqa: ARG001  verl's parameter
    return _all(token_logprobs(logits, _any_target(logits), return_entropy=True)).entropy


def _sum_pi_squared(_theirs: Any, logits: Tensor) -> Any:
    return _all(token_logprobs(logits, _any_target(logits), return_sum_squared_probs=True)).sum_squared_probs


def _linear_cross_entropy(
    _theirs: Any,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """As in verl, all positions are flattened into one dimension, and only the log-probabilities are reduced."""
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    ranks = 1 if dist_process_group is None else dist.get_world_size(dist_process_group)
    if ranks == 1:
        found = linear_token_logprobs(hidden, weight, labels, temperature=temperature, return_entropy=True)
    else:
        # The gather before it adds up the ranks' gradients of hidden. verl's are parts of the gradient, ours the whole.
        if hidden.requires_grad:
            hidden = hidden.view_as(hidden)
            hidden.register_hook(lambda gradient: gradient / ranks)
        found = vocab_parallel_linear_token_logprobs(
            hidden, weight, in_vocabulary(labels, len(weight) * ranks), dist_process_group,
            temperature=temperature, return_entropy=True,
        )  # fmt: skip
    logprobs, entropy, _ = _all(found)
    assert entropy is not None
    if reduction.lower() not in ("none", "sum", "mean"):
        raise ValueError(f"expected reduction 'none', 'sum' or 'mean', got {reduction!r}")
    return (logprobs if reduction.lower() == "none" else getattr(logprobs, reduction.lower())()), entropy


def _fused_linear_for_ppo(
    _theirs: Any,
    _module: torch.nn.Module,
    hidden_states: Tensor,
    vocab_weights: Tensor,
    input_ids: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    found = linear_token_logprobs(hidden_states, vocab_weights, input_ids, temperature=temperature, return_entropy=True)
    return _all(found)[:2]


def _vocab_parallel_entropy(_theirs: Any, vocab_parallel_logits: Tensor, chunk_size: int = 0) -> Any:  # noqa: ARG001
    target = _any_target(vocab_parallel_logits)
    return _all(
        vocab_parallel_token_logprobs(vocab_parallel_logits, target, tensor_parallel_group(), return_entropy=True)
    ).entropy


def _vocab_parallel_sum_pi_squared(_theirs: Any, vocab_parallel_logits: Tensor) -> Any:
    target = _any_target(vocab_parallel_logits)
    return _all(
        vocab_parallel_token_logprobs(
            vocab_parallel_logits, target, tensor_parallel_group(), return_sum_squared_probs=True
        )
    ).sum_squared_probs


def _vocab_parallel_log_probs(_theirs: Any, logits: Tensor, labels: Tensor) -> Any:
    group = tensor_parallel_group()
    labels = in_vocabulary(labels, logits.shape[-1] * dist.get_world_size(group))
    return vocab_parallel_token_logprobs(logits, labels, group)


def _any_target(logits: Tensor) -> Tensor:
    """A target for values that do not depend on it."""
    return torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)


def _all(found: Tensor | TokenLogprobs) -> TokenLogprobs:
    assert isinstance(found, TokenLogprobs), "a value beside the log-probabilities was asked for"
    return found


# By the names of verl's functions: the parameters that are known, and our function.
_OF_LOGITS: dict[str, tuple[str, Callable[..., Any]]] = {
    "logprobs_from_logits": ("logits, labels, inplace_backward", _logprobs_from_logits),
    "logprobs_from_logits_v2": ("logits, labels", _logprobs),
    "logprobs_from_logits_torch_npu": ("logits, labels", _logprobs),
    "entropy_from_logits": ("logits", _entropy),
    "entropy_from_logits_with_chunking": ("logits, chunk_size", _entropy),
    "calculate_sum_pi_squared_from_logits": ("logits", _sum_pi_squared),
}
_OF_SHARDS: dict[str, tuple[str, Callable[..., Any]]] = {
    "vocab_parallel_entropy": ("vocab_parallel_logits", _vocab_parallel_entropy),
    "vocab_parallel_entropy_with_chunking": ("vocab_parallel_logits, chunk_size", _vocab_parallel_entropy),
    "vocab_parallel_sum_pi_squared": ("vocab_parallel_logits", _vocab_parallel_sum_pi_squared),
    "vocab_parallel_log_probs_from_logits": ("logits, labels", _vocab_parallel_log_probs),
}
_OF_HIDDEN = "hidden, weight, labels, temperature, reduction, dist_process_group"
