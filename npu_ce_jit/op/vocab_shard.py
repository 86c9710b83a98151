# SPDX-License-Identifier: Apache-2.0
"""Rows of logits of which each rank of a group has some of the classes: two collectives forward, none backward.

With m the greatest of the ranks' maxima, and sums over all classes, which are sums over the ranks:

    first, MAX:   m                               and how many classes each rank has, and the sum of their weights
    second, SUM:  sum exp(x' - m)    w[y] (m - x'[y])    w[y]    sum w (m - x')    sum exp(x' - m) (x' - m)

Each of the last three rides along where an option needs it. The log of the first sum is log_sum, and with it follows
every term of docs/design.md section 2, row by row. The kernels do what is of size `[N, classes]`: `_forward` gives each
rank's max, log-sum, smoothed sum and entropy in one pass over its logits, `_backward` the gradient of its classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor

from npu_ce_jit.op.autograd import OPS
from npu_ce_jit.op.checks import require_targets_in_range
from npu_ce_jit.op.rows import Gradients, loss_gradients, transformed
from npu_ce_jit.op.schema import ARGMAX, ENTROPY, MEAN, NONE, LossTerms, accumulation_dtype

# For a call of the kernels in which every row counts: no target is negative there.
_NO_INDEX = -1


class Shard(NamedTuple):
    """Which of the classes this rank has. Tensors `[]`: the host waits for none of them."""

    group: dist.ProcessGroup
    first: Tensor
    classes: Tensor  # of all ranks
    weight_sum: Tensor  # of all classes' weights


class Rows(NamedTuple):
    """What every rank of the group knows of each row, `[N]` in the accumulation dtype if nothing else is said."""

    ce: Tensor  # the cross entropy: 0 where ignored, NaN where the target is no class
    lse: Tensor
    row_stats: Tensor  # [2, N]
    target_weight: Tensor  # 0 where ignored
    entropy: Tensor | None
    argmax: Tensor | None  # int64


class _Place(NamedTuple):
    """Where the targets are, `[N]` each."""

    valid: Tensor  # not ignored
    known: Tensor  # a class of some rank
    is_here: Tensor  # not ignored, and a class of this rank
    local: Tensor  # int64, among this rank's classes; 0 where it is elsewhere


class _AtTarget(NamedTuple):
    """Of the rows whose target is here, `[N]` each; of the others whatever class 0 has."""

    x: Tensor  # x'
    slope: Tensor | float  # dx'/dx
    weight: Tensor


def forward(
    input: Tensor, target: Tensor, weight: Tensor | None, terms: LossTerms, outputs: int, group: dist.ProcessGroup
) -> tuple[Rows, Shard]:
    """Rows of the logits of which `input` `[N, C]` has this rank's classes, and `weight` `[C]` their weights.

    All ranks have the same targets. Reduction and z-loss are the caller's. With ARGMAX there is a third collective.
    """
    dtype, classes = accumulation_dtype(input.dtype), input.shape[1]
    row_max, log_sum, smooth, entropy, argmax = _own_classes(input, weight, terms, outputs, dtype)
    weight_sum = _weight_sum(input, weight, dtype)
    greatest, shard = _first_collective(row_max, classes, weight_sum, group)
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        require_targets_in_range(target, int(shard.classes), terms.ignore_index)
    place = _place(target, shard, classes, terms.ignore_index)

    is_masked = row_max == -torch.inf  # all of this rank's classes: they add exp(-inf), and inf to what is smoothed
    share = torch.where(is_masked, 0, ((row_max - greatest) + log_sum).exp())
    at = _at_target(input, weight, place, terms, dtype)
    parts = [share, torch.where(place.is_here, at.weight * (greatest - at.x), 0)]
    if weight is not None:
        parts.append(torch.where(place.is_here, at.weight, 0))
    if terms.label_smoothing:
        smoothed = smooth * classes + weight_sum * (greatest - (row_max + log_sum))
        parts.append(torch.where(is_masked, torch.inf if classes else 0, smoothed))
    if outputs & ENTROPY:
        parts.append(torch.where(share == 0, 0, share * (((row_max - greatest) + log_sum) - entropy)))
    total, nll, *others = _all_reduce(torch.stack(parts), "sum", group)

    log_sum = total.log()
    target_weight = others.pop(0) if weight is not None else place.valid.to(dtype)
    ce = nll + target_weight * log_sum
    if terms.label_smoothing:
        smooth = others.pop(0) + shard.weight_sum * log_sum
        ce = (1 - terms.label_smoothing) * ce + terms.label_smoothing / shard.classes * smooth
    found = Rows(
        ce=torch.where(place.valid, torch.where(place.known, ce, torch.nan), 0),
        lse=greatest + log_sum,
        row_stats=torch.stack((greatest, log_sum)),
        target_weight=target_weight,
        entropy=log_sum - others.pop(0) / total if outputs & ENTROPY else None,
        argmax=_first_of_the_greatest(row_max, greatest, argmax, shard) if outputs & ARGMAX else None,
    )
    return found, shard


def backward(
    gradients: Gradients,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    rows: Rows,
    denominators: Tensor,
    shard: Shard,
    terms: LossTerms,
    *,
    in_place: bool = False,
) -> Tensor:
    """The gradient of this rank's logits, over them where `in_place`; of `rows`, ce and argmax are not looked at.

    `gradients` are those of `_backward`. That of log_prob is for this rank's classes; it needs a collective.
    """
    dtype, classes = accumulation_dtype(input.dtype), input.shape[1]
    place = _place(target, shard, classes, terms.ignore_index)
    at = _at_target(input, weight, place, terms, dtype)
    ce, z = loss_gradients(gradients, place.valid, denominators, terms)
    ce = torch.where(place.valid & ~place.known, torch.nan, ce)
    # The t, u and r of docs/design.md. The kernel adds to r what it sees of it: here is what it does not.
    t, u = ce * (1 - terms.label_smoothing) * rows.target_weight, ce * (terms.label_smoothing / shard.classes)
    seen = u * _weight_sum(input, weight, dtype)
    unseen = u * shard.weight_sum - seen if terms.label_smoothing else torch.zeros_like(ce)
    if terms.z_loss:
        unseen = unseen + torch.where(place.valid, z * (2 * terms.z_loss) * rows.lse, 0)
    if gradients.lse is not None:
        unseen = unseen + gradients.lse.to(dtype)
    if gradients.entropy is not None:
        assert rows.entropy is not None
        seen = seen - gradients.entropy.to(dtype) * rows.entropy
    if gradients.log_prob is not None:
        own = gradients.log_prob.sum(1, dtype=dtype)
        seen, unseen = seen - own, unseen + own - _all_reduce(own, "sum", shard.group)

    log_prob = (at.x - rows.row_stats[0]) - rows.row_stats[1]
    rest = seen + unseen
    if gradients.entropy is not None:
        rest = rest - gradients.entropy.to(dtype) * log_prob
    result_at_target = t * log_prob.expm1() + log_prob.exp() * rest - u * at.weight
    index = place.local[:, None]
    if gradients.log_prob is not None and classes:
        result_at_target = result_at_target + gradients.log_prob.gather(1, index)[:, 0].to(dtype)
    result_at_target = (result_at_target * at.slope).to(input.dtype)

    if classes == 0:
        return torch.empty_like(input)
    # As if each target were of another rank: with smoothing alone, the kernel takes none for one.
    arguments = (
        u * classes if terms.label_smoothing else None, None, gradients.log_prob, t + unseen, gradients.entropy,
        input, torch.zeros_like(target), weight, rows.row_stats, rows.entropy, rows.row_stats.new_ones(2),
        NONE, _NO_INDEX, 1.0, 0.0, terms.softcap, terms.logit_scale,
    )  # fmt: skip
    if in_place:
        OPS._backward_.default(*arguments)
        result = input
    else:
        result = OPS._backward.default(*arguments)
    if not gradients.reach_ignored_rows:
        # An ignored row's logits may hold NaN, and 0 * NaN is NaN.
        result.masked_fill_(~place.valid[:, None], 0)
    others = result.gather(1, index)
    return result.scatter_(1, index, torch.where(place.is_here[:, None], result_at_target[:, None], others))


def reduced(rows: Rows, valid: Tensor, denominators: Tensor, terms: LossTerms) -> tuple[Tensor, Tensor]:
    """The loss, and its z-loss part, of rows that this process has all of."""
    ce, z = rows.ce, torch.where(valid, terms.z_loss * rows.lse * rows.lse, 0) if terms.z_loss else rows.ce * 0
    if terms.reduction != NONE:
        ce, z = ce.sum(), z.sum()
    if terms.reduction == MEAN:
        ce, z = ce / denominators[0], z / denominators[1]
    return ce + z if terms.z_loss else ce, z


def _own_classes(
    input: Tensor, weight: Tensor | None, terms: LossTerms, outputs: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of this rank's classes alone: max, log-sum, the mean of -w times their log-probability, entropy, argmax."""
    rows, classes = input.shape
    if classes == 0:  # there are more ranks than classes
        none = input.new_zeros((rows,), dtype=dtype)
        return none - torch.inf, none, none, none, torch.zeros_like(none, dtype=torch.int64)
    # Smoothing alone: a target may be of another rank.
    only = (NONE, _NO_INDEX, 1.0 if terms.label_smoothing else 0.0, 0.0, terms.softcap, terms.logit_scale)
    any_class = torch.zeros((rows,), dtype=torch.int64, device=input.device)
    smooth, _, _, _, argmax, entropy, row_stats, _ = OPS._forward.default(
        input, any_class, weight, *only, outputs & (ENTROPY | ARGMAX), dtype
    )
    return row_stats[0], row_stats[1], smooth, entropy, argmax


def _first_collective(
    row_max: Tensor, classes: int, weight_sum: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Shard]:
    """The rows' max over all ranks, and what each rank says of its classes."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    # As a float, which is exact up to 2^24 classes a rank. Padding is what no max takes: weights may be negative.
    own = torch.stack((row_max.new_full((), classes), weight_sum))[:, None]
    padded = torch.nn.functional.pad(own, (rank, ranks - rank - 1), value=-torch.inf)
    flat = _all_reduce(torch.cat((row_max, padded.flatten())), "max", group)
    greatest, of_ranks = flat.split([len(row_max), 2 * ranks])
    sizes, weight_sums = of_ranks.view(2, ranks)
    sizes = sizes.long()
    return greatest, Shard(group, sizes[:rank].sum(), sizes.sum(), weight_sums.sum())


def _first_of_the_greatest(row_max: Tensor, greatest: Tensor, argmax: Tensor, shard: Shard) -> Tensor:
    is_mine = (row_max == greatest) | row_max.isnan()
    return _all_reduce(torch.where(is_mine, argmax + shard.first, shard.classes), "min", shard.group)


def _place(target: Tensor, shard: Shard, classes: int, ignore_index: int) -> _Place:
    valid = target != ignore_index
    known = (target >= 0) & (target < shard.classes)
    index = target.long() - shard.first
    is_here = valid & known & (index >= 0) & (index < classes)
    return _Place(valid, known, is_here, torch.where(is_here, index, 0))


def _at_target(input: Tensor, weight: Tensor | None, place: _Place, terms: LossTerms, dtype: torch.dtype) -> _AtTarget:
    if input.shape[1] == 0:
        nothing = input.new_zeros(place.local.shape, dtype=dtype)
        return _AtTarget(nothing, 1.0, nothing)
    x, slope, _ = transformed(input.gather(1, place.local[:, None])[:, 0].to(dtype), terms)
    return _AtTarget(x, slope, torch.ones_like(x) if weight is None else weight.to(dtype)[place.local])


def _weight_sum(input: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    return input.new_full((), input.shape[1], dtype=dtype) if weight is None else weight.sum(dtype=dtype)


def _all_reduce(values: Tensor, operation: str, group: dist.ProcessGroup) -> Tensor:
    # Functional, so that torch.compile can trace it.
    reduced: Tensor = funcol.wait_tensor(funcol.all_reduce(values, operation, group))
    return reduced
