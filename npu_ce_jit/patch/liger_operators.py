# SPDX-License-Identifier: Apache-2.0
"""`npu_ce_jit.patch.liger`: Liger's cross entropy, from logits and from hidden states, in all the models it patches."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.api.cross_entropy import HALVES, CrossEntropyOutput, cross_entropy
from npu_ce_jit.api.linear_cross_entropy import linear_cross_entropy
from npu_ce_jit.api.linear_token_logprobs import linear_token_logprobs
from npu_ce_jit.errors import PatchError
from npu_ce_jit.log import warn
from npu_ce_jit.patch.exchange import Change, Patch, exchange, framework, require_parameters

_STUDIED = "0.8.5"
_OF_LOGITS = (
    "ctx, _input, target, weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap, return_z_loss, "
    "return_token_accuracy, return_predicted_tokens"
)
_OF_HIDDEN = (
    "ctx, _input, weight, target, bias, ce_weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap,"
    " return_z_loss, accum_dtype, use_token_scaling, return_token_accuracy, return_predicted_tokens"
)
_CHOOSING = ("ce_impl", "ce_mode", "chunk_mem_const")  # select Liger's kernels; its default has three, Ascend's two

# loss, z_loss, token_accuracy, predicted_tokens; None for what was not asked.
Found = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def liger() -> Patch:
    """Makes Liger compute cross entropy with our kernels, from logits and from hidden states.

    Exchanges `apply` of LigerCrossEntropyFunction and LigerFusedLinearCrossEntropyFunction, in Liger's default
    implementation and in the one that takes its place (Ascend's, on an NPU). All of Liger's interfaces call these:
    apply_liger_kernel_to_*, its modules and functions, and its dispatcher, also in models that are patched already.

    As in Liger, z_loss is for logging, without a gradient; a mean where every row is ignored is 0; predicted tokens are
    -1 and accuracy is 0 where a row is ignored; use_token_scaling weights each row by its target's probability. From
    hidden states, results are float32, where Liger's have the input's dtype. An accum_dtype other than the weight's is
    not followed, with a RuntimeWarning: each chunk's gradient is added in the weight's dtype. The gradient overwrites
    contiguous logits, as Liger's does, but in backward, where Liger does it in forward.

    Liger cannot be imported without Triton, which triton-ascend provides on an NPU. Where there is none, call
    `npu_ce_jit.patch.transformers(model)` instead.

    Returns:
        The Patch that undoes it.

    Raises:
        PatchError: Liger or Triton is not installed, or Liger's functions are not those that are known.

    Source: liger_kernel/ops/cross_entropy.py and fused_linear_cross_entropy.py of Liger 0.8.5.
    """
    if importlib.util.find_spec("triton") is None:
        raise PatchError(
            f"expected Triton, which liger_kernel {_STUDIED} imports whatever it runs on, got none.",
            "Install it (triton-ascend on an NPU), or call npu_ce_jit.patch.transformers(model), which does without.",
        )
    current = framework("liger_kernel.ops", _STUDIED)
    of_logits = framework("liger_kernel.ops.cross_entropy", _STUDIED)
    of_hidden = framework("liger_kernel.ops.fused_linear_cross_entropy", _STUDIED)
    changes: dict[type, Change] = {}
    for module in (current, of_logits):
        function = module.LigerCrossEntropyFunction
        _require(function, _OF_LOGITS)
        changes[function] = Change(function, "apply", _cross_entropy)
    for module in (current, of_hidden):
        function = module.LigerFusedLinearCrossEntropyFunction
        _require(function, _OF_HIDDEN, _CHOOSING)
        changes[function] = Change(function, "apply", _fused_linear_cross_entropy)
    return exchange("npu_ce_jit.patch.liger()", *changes.values())


def _require(function: type, parameters: str, more: tuple[str, ...] = ()) -> None:
    forward: Any = inspect.unwrap(function.forward)  # type: ignore[attr-defined]
    has = [name for name in more if name in inspect.signature(forward).parameters]
    require_parameters(
        f"{function.__name__}.forward", forward, ", ".join([parameters, *has]), f"liger_kernel {_STUDIED}"
    )


def _cross_entropy(
    _theirs: Any,
    _function: type,
    _input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
) -> Found:
    found = cross_entropy(
        _input, target, weight, reduction, ignore_index, label_smoothing, z_loss=lse_square_scale, softcap=softcap,
        return_z_loss=True, return_argmax=return_token_accuracy or return_predicted_tokens,
        inplace_backward=_input.is_contiguous(),
    )  # fmt: skip
    assert isinstance(found, CrossEntropyOutput), "z_loss was asked for"
    asked = return_z_loss, return_token_accuracy, return_predicted_tokens
    return _as_ligers(found, target, ignore_index, reduction, *asked)


def _fused_linear_cross_entropy(
    _theirs: Any,
    _function: type,
    _input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ce_weight: Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    accum_dtype: torch.dtype | None = None,
    use_token_scaling: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    *_chosen: Any,
) -> Found:
    if accum_dtype not in (None, weight.dtype):
        warn(
            f"npu_ce_jit: expected accum_dtype None or {weight.dtype}, the weight's, got {accum_dtype}: the gradient "
            "of the weight is added up in its own dtype. Leave accum_dtype at None."
        )
    found = linear_cross_entropy(
        _input, weight, target, linear_bias=bias, weight=ce_weight, ignore_index=ignore_index,
        reduction="none" if use_token_scaling else reduction, label_smoothing=label_smoothing, z_loss=lse_square_scale,
        softcap=softcap, return_z_loss=return_z_loss or use_token_scaling, skip_ignored=True,
        return_argmax=return_token_accuracy or return_predicted_tokens,
        loss_dtype=torch.float32 if _input.dtype in HALVES else None,
    )  # fmt: skip
    if not isinstance(found, CrossEntropyOutput):
        found = CrossEntropyOutput(found, None, None, None, None)
    if use_token_scaling:
        with torch.no_grad():
            logprobs = linear_token_logprobs(
                _input, weight, target, linear_bias=bias, softcap=softcap, ignore_index=ignore_index
            )
        assert isinstance(logprobs, Tensor)
        found = _scaled(found, logprobs.exp(), target, ce_weight, ignore_index, reduction)
    asked = return_z_loss, return_token_accuracy, return_predicted_tokens
    return _as_ligers(found, target, ignore_index, reduction, *asked)


def _scaled(
    rows: CrossEntropyOutput,
    probability: Tensor,
    target: Tensor,
    ce_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
) -> CrossEntropyOutput:
    """Each row times its target's probability, reduced with the denominators of Liger's mean."""
    assert rows.z_loss is not None
    z_loss = rows.z_loss * probability
    cross_entropies = rows.loss * probability - z_loss
    if reduction == "none":
        return rows._replace(loss=cross_entropies + z_loss, z_loss=z_loss)
    cross_entropies, z_loss = cross_entropies.sum(), z_loss.sum()
    if reduction == "mean":
        counted = target != ignore_index
        weights = counted if ce_weight is None else ce_weight[torch.where(counted, target, 0)] * counted
        cross_entropies, z_loss = cross_entropies / weights.sum(), z_loss / counted.sum()
    return rows._replace(loss=cross_entropies + z_loss, z_loss=z_loss)


def _as_ligers(
    found: CrossEntropyOutput,
    target: Tensor,
    ignore_index: int,
    reduction: str,
    return_z_loss: bool,
    return_token_accuracy: bool,
    return_predicted_tokens: bool,
) -> Found:
    counted = target != ignore_index
    loss, z_loss = found.loss, found.z_loss.detach() if return_z_loss and found.z_loss is not None else None
    if reduction == "mean":
        loss = torch.where(counted.any(), loss, 0)
        z_loss = None if z_loss is None else torch.where(counted.any(), z_loss, 0)
    accuracy = predicted = None
    if return_token_accuracy:
        is_right = (found.predicted_tokens(target, ignore_index) == target) & counted
        accuracy = is_right.float() if reduction == "none" else found.token_accuracy(target, ignore_index)
    if return_predicted_tokens:
        predicted = found.predicted_tokens(target, ignore_index)
    return loss, z_loss, accuracy, predicted
