# SPDX-License-Identifier: Apache-2.0
"""Checks that backward sees the tensors that forward saw.

Torch finds a change in place by the version of a saved tensor. The checks here find what takes a tensor's values away
and changes no version: `.data =`, by which ZeRO-3 releases parameters, and freeing the storage, as FSDP does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npu_ce_jit.op.torch_private import functorch_is_active

# Shape and dtype; None where there is no tensor.
Seen = tuple[tuple[torch.Size, torch.dtype] | None, ...]

PARAMETERS_TAKEN_APART = (
    "Where ZeRO-3 or FSDP takes parameters apart, call the loss in the forward of the wrapped module, which gathers "
    "them for backward too, or gather them yourself until backward is over (deepspeed.zero.GatheredParameters, "
    "FSDP.summon_full_params, FSDPModule.unshard)"
)
_HINT = f"leave it as forward had it until backward is over, or pass a clone. {PARAMETERS_TAKEN_APART}"


def seen(*tensors: Tensor | None) -> Seen:
    """What `require_unchanged` compares with."""
    if torch.compiler.is_compiling():  # a graph has every change to its tensors in it
        return ()
    return tuple([None if t is None else (t.shape, t.dtype) for t in tensors])


def require_unchanged(before: Seen, names: Sequence[str], now: Sequence[Tensor | None], advice: str = "") -> None:
    """Raises RuntimeError where a saved tensor has another shape or dtype than forward has seen."""
    if before and seen(*now) != before:
        for name, was, tensor in zip(names, before, now, strict=True):
            if was is None or tensor is None or was == (tensor.shape, tensor.dtype):
                continue
            (shape, dtype), other = was, tensor.dtype != was[1]
            was_of, is_of = (f" of {d}".replace("torch.", "") if other else "" for d in (dtype, tensor.dtype))
            raise RuntimeError(
                f"expected {name} in backward as in forward: {name} was {list(shape)}{was_of} in forward, "
                f"now {list(tensor.shape)}{is_of}; {_HINT}{advice}"
            )


def require_storage(names: Sequence[str], tensors: Sequence[Tensor | None]) -> None:
    """Raises RuntimeError for a tensor whose storage was freed: torch's operators would read arbitrary memory."""
    if functorch_is_active():
        return
    for name, tensor in zip(names, tensors, strict=True):
        is_plain = type(tensor) in (Tensor, torch.nn.Parameter)
        if tensor is not None and is_plain and tensor.numel() and not tensor.untyped_storage().nbytes():
            raise RuntimeError(
                f"expected {name} with its values, got shape {list(tensor.shape)} whose storage is freed; {_HINT}"
            )
