# SPDX-License-Identifier: Apache-2.0
"""Which of the classes a rank has, and of each row's target whether it is one of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.op.rows import transformed
from npu_ce_jit.op.schema import LossTerms


class VocabRange(NamedTuple):
    """Which of the classes this rank has: numbers, or tensors `[]`, so that the host waits for none of them."""

    first: int | Tensor
    classes: int | Tensor  # of all ranks
    weight_sum: Tensor  # of all classes' weights


class Place(NamedTuple):
    """Where the targets are, `[N]` each."""

    not_ignored: Tensor  # not ignored
    in_range: Tensor  # a class of some rank
    is_here: Tensor  # not ignored, and a class of this rank
    local: Tensor  # int64, among this rank's classes; 0 where it is elsewhere


class AtTarget(NamedTuple):
    """Of the rows whose target is here, `[N]` each; of the others, of class 0."""

    x: Tensor  # x'
    slope: Tensor | float  # dx'/dx
    weight: Tensor


def place_of(target: Tensor, shard: VocabRange, classes: int, ignore_index: int) -> Place:
    not_ignored = target != ignore_index
    in_range = (target >= 0) & (target < shard.classes)
    index = target.long() - shard.first
    is_here = not_ignored & in_range & (index >= 0) & (index < classes)
    return Place(not_ignored, in_range, is_here, torch.where(is_here, index, 0))


def at_target(input: Tensor, weight: Tensor | None, place: Place, terms: LossTerms, dtype: torch.dtype) -> AtTarget:
    if input.shape[1] == 0:
        nothing = input.new_zeros(place.local.shape, dtype=dtype)
        return AtTarget(nothing, 1.0, nothing)
    x, slope, _ = transformed(input.gather(1, place.local[:, None])[:, 0].to(dtype), terms)
    return AtTarget(x, slope, torch.ones_like(x) if weight is None else weight.to(dtype)[place.local])
