# SPDX-License-Identifier: Apache-2.0
"""What runs for a call that the switch redirects: ours where it takes the call, else theirs, as if untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from npu_ce_jit import bootstrap
from npu_ce_jit.api.cross_entropy import HALVES, OPS
from npu_ce_jit.api.cross_entropy import cross_entropy as our_cross_entropy
from npu_ce_jit.op.torch_private import has_tangent
from npu_ce_jit.torch_compat import is_autocast

# All that ours refuses, before it computes anything: checks, a layout of torch_npu's own, a library that does not load.
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
    """F.cross_entropy, by ours where torch takes the call too."""
    if (
        not has_torch_function_variadic(input, target, weight)
        and size_average is None
        and reduce is None
        and type(ignore_index) in (int, torch.SymInt)
        and isinstance(label_smoothing, (int, float, torch.SymFloat))
        and not torch._C._is_tracing()  # what torch.jit traces is to run where this package is not
        and _has_kernels_for(input, target, weight)
        and _torch_takes(input, target, weight)
    ):
        try:
            return our_cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing)  # type: ignore[return-value]
        except _REFUSALS:
            pass
    return theirs(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)


def npu_cross_entropy_loss(
    theirs: Callable[..., Any],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *options: Any,  # the dispatcher leaves out those at the end that have their defaults
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A kernel of torch_npu's operator, by ours, with its dtypes and with its two differentiable outputs, no others."""
    if _has_kernels_for(input, target, weight):
        try:
            loss, log_prob, zloss, lse = OPS.npu_cross_entropy_loss.default(input, target, weight, *options)
            return loss, log_prob.detach(), zloss, lse.to(input.dtype)
        except _REFUSALS:
            pass
    return theirs(input, target, weight, *options)  # type: ignore[no-any-return]


def _has_kernels_for(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether compiled kernels exist for these here: the slow reference never replaces torch's own."""
    tensors = (input, target) if weight is None else (input, target, weight)
    if not all(isinstance(tensor, Tensor) and _is_plain(tensor) for tensor in tensors):
        return False
    session, device = bootstrap.run(), input.device.type
    return device in ("cpu", "npu") and getattr(session, device).state != "none"


def _is_plain(tensor: Tensor) -> bool:
    """Strided, and of no subclass that may know torch's operators only: torch's own for tracing know all."""
    kind = type(tensor)
    return (
        (kind in (Tensor, torch.nn.Parameter) or kind.__module__.startswith("torch._subclasses."))
        and not tensor.is_nested
        and tensor.layout is torch.strided
    )


def _torch_takes(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Leaves to torch what only ours takes, and what torch says of a weight that is differentiated."""
    if input.dim() < 2 or target.dtype is not torch.int64:
        return False
    if weight is None:
        return True
    is_differentiated = weight.requires_grad or has_tangent(weight)
    return _computed_dtype(weight) is _computed_dtype(input) and not is_differentiated


def _computed_dtype(tensor: Tensor) -> torch.dtype:
    """In which torch computes the loss: under autocast, halves are cast."""
    return torch.float32 if tensor.dtype in HALVES and is_autocast(tensor.device.type) else tensor.dtype
