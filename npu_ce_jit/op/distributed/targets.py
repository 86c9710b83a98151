# SPDX-License-Identifier: Apache-2.0
"""The range of classes that a rank has, and which rows' targets are in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.op.rows import transformed
from npu_ce_jit.op.schema import LossTerms


class VocabRange(NamedTuple):
    """This rank's range of classes: ints, or tensors `[]` where the host would have to wait for the ints."""

    first: int | Tensor
    classes: int | Tensor  # of all ranks
    weight_sum: Tensor  # of all classes' weights


class Place(NamedTuple):
    """Where the targets are, `[N]` each."""

    not_ignored: Tensor  # bool
    in_range: Tensor  # bool: a class of some rank
    is_here: Tensor  # bool: not ignored, and a class of this rank
    local: Tensor  # int64: the index among this rank's classes; 0 where the target is elsewhere


class AtTarget(NamedTuple):
    """Values at each row's target, `[N]` each; where the target is elsewhere, at this rank's first class."""

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
