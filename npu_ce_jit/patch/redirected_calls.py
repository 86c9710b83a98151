# SPDX-License-Identifier: Apache-2.0
"""What runs for a call that the switch redirects: our function where it takes the call, else theirs, unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from npu_ce_jit import bootstrap
from npu_ce_jit.api.cross_entropy import HALVES, OPS
from npu_ce_jit.api.cross_entropy import cross_entropy as our_cross_entropy
from npu_ce_jit.op.torch_private import has_tangent, is_distributed
from npu_ce_jit.patch.call_counts import of_function, of_operator
from npu_ce_jit.torch_compat import is_autocast

# The errors with which ours refuses a call before it computes anything: a failed check, a private format of torch_npu,
# a library that does not load.
_REFUSALS = (RuntimeError, ValueError, IndexError)


def cross_entropy(
    theirs: Callable[..., Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    size_average: bool | None,
    ignore_index: int,
    reduce: bool | None,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """F.cross_entropy, computed by ours where both take the call."""
    reason = _why_not_ours(input, target, weight, size_average, ignore_index, reduce, label_smoothing)
    if reason is None:
        try:
            loss = our_cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing)
        except _REFUSALS as error:
            reason = _of_refusal(error)
        else:
            of_function.count_ours()
            return loss  # type: ignore[return-value]
    of_function.count_passed_through(reason)
    return theirs(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)


def npu_cross_entropy_loss(
    theirs: Callable[..., Any],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *options: Any,  # the dispatcher leaves out those at the end that have their defaults
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A kernel of torch_npu's operator that runs ours, with torch_npu's dtypes. Only loss and zloss have gradients."""
    reason = _why_no_kernels(input, target, weight)
    if reason is None:
        try:
            loss, log_prob, zloss, lse = OPS.npu_cross_entropy_loss.default(input, target, weight, *options)
        except _REFUSALS as error:
            reason = _of_refusal(error)
        else:
            of_operator.count_ours()
            return loss, log_prob.detach(), zloss, lse.to(input.dtype)
    of_operator.count_passed_through(reason)
    return theirs(input, target, weight, *options)  # type: ignore[no-any-return]


def _why_not_ours(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    size_average: bool | None,
    ignore_index: int,
    reduce: bool | None,
    label_smoothing: float,
) -> str | None:
    """The reason why torch is to answer a call; None where ours may."""
    if has_torch_function_variadic(input, target, weight):
        return "a subclass of Tensor that overrides torch's functions"
    if size_average is not None or reduce is not None:
        return "size_average or reduce"
    if type(ignore_index) not in (int, torch.SymInt) or not isinstance(label_smoothing, (int, float, torch.SymFloat)):
        return "ignore_index or label_smoothing that is no number"
    if torch._C._is_tracing():  # a trace of torch.jit must run where this package is not installed
        return "torch.jit.trace"
    return _why_no_kernels(input, target, weight) or _why_only_ours_takes_it(input, target, weight)


def _of_refusal(error: Exception) -> str:
    """The reason without the error's text, which has sizes in it: calls are counted by reason, so there must be few."""
    if isinstance(error, NotImplementedError):
        return "a dtype that ours does not have on this device"
    return f"arguments that ours refuses with {type(error).__name__}"


def _why_no_kernels(input: Tensor, target: Tensor, weight: Tensor | None) -> str | None:
    """The reason why no compiled kernel takes these tensors: the slow reference never replaces torch's own."""
    tensors = (input, target) if weight is None else (input, target, weight)
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return "an argument that is no Tensor"
    if not all(map(_is_strided, tensors)):
        return "a nested or sparse tensor"
    # DTensors go to ours: torch's mean over rows that ranks share is wrong where some are ignored.
    if not all(map(_is_plain, tensors)) and not all(map(is_distributed, tensors)):
        return "a subclass of Tensor, or DTensors beside plain tensors"
    session, device = bootstrap.run(), input.device.type
    if device not in ("cpu", "npu") or getattr(session, device).state == "none":
        return f"no kernels of ours for {device}"
    return None


def _is_strided(tensor: Tensor) -> bool:
    return not tensor.is_nested and tensor.layout is torch.strided


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is of no subclass that may support torch's operators only; torch's own for tracing support all."""
    kind = type(tensor)
    return kind in (Tensor, torch.nn.Parameter) or kind.__module__.startswith("torch._subclasses.")


def _why_only_ours_takes_it(input: Tensor, target: Tensor, weight: Tensor | None) -> str | None:
    """Leaves to torch the calls that only one of the two takes, and its error for a weight that is differentiated."""
    if input.dim() < 2:
        return "logits of one row, [C]"
    if target.is_floating_point():
        return "class probabilities"
    if target.dtype is not torch.int64:
        return "targets that are not int64"
    if weight is None:
        return None
    if weight.requires_grad or has_tangent(weight):
        return "a weight that is differentiated"
    if _computed_dtype(weight) is not _computed_dtype(input):
        return "a weight of another dtype than the logits"
    return None


def _computed_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which torch computes the loss: autocast casts halves to float32."""
    return torch.float32 if tensor.dtype in HALVES and is_autocast(tensor.device.type) else tensor.dtype
