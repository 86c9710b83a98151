# SPDX-License-Identifier: Apache-2.0
"""Losses of logits whose classes the ranks of a group share: two collectives forward, none backward.

With m the max over all ranks, and sums over all classes, which are sums over the ranks:

    first, MAX:   m                               and how many classes each rank has, and the sum of their weights
    second, SUM:  sum exp(x' - m)    w[y] (m - x'[y])    w[y]    sum w (m - x')    sum exp(x' - m) (x' - m)

The last three are sent only where an option needs them, and so is sum exp(2 (x' - m)), for the sum of squared
probabilities. The log of the first sum is log_sum, from which every term of docs/design.md section 2 follows, row by
row. Work of size `[N, classes]` is left to the kernels: `_forward` gives each rank's max, log-sum, smoothed sum and
entropy in one pass over its logits, `_backward` the gradient of its classes.

Two options cost a collective more: ARGMAX in forward, and a gradient of log_prob in backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from npu_ce_jit.op.autograd.functions import OPS
from npu_ce_jit.op.checks import require_targets_in_range
from npu_ce_jit.op.distributed.targets import VocabRange, at_target, place_of
from npu_ce_jit.op.rows import OutputGrads, loss_gradients
from npu_ce_jit.op.schema import ARGMAX, DOUBLED_LSE, ENTROPY, MEAN, NONE, LossTerms, accumulation_dtype

# ignore_index of the kernels' calls, whose targets are indices among this rank's classes.
_IGNORED = -1

# A process group, or one dimension of a mesh.
Group = dist.ProcessGroup | tuple[DeviceMesh, int]

# The smoothing factor of the loss, from the label_smoothing that the caller gave and the number of all classes.
Smoothing = Callable[[float, int | Tensor], float | Tensor]


class ShardedRows(NamedTuple):
    """Each row's results, the same on every rank: `[N]` in the accumulation dtype unless noted otherwise."""

    ce: Tensor  # the cross entropy: 0 where ignored, NaN where the target is no class
    row_stats: Tensor  # [2, N]
    target_weight: Tensor  # 0 where ignored
    entropy: Tensor | None
    argmax: Tensor | None  # int64
    doubled_stats: Tensor | None  # [2, N], of 2x'


def as_given(label_smoothing: float, _classes: int | Tensor) -> float:
    return label_smoothing


def forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    terms: LossTerms,
    outputs: int,
    groups: Sequence[Group],
    shard: VocabRange | None = None,
    smoothing: Smoothing = as_given,
) -> tuple[ShardedRows, VocabRange]:
    """Each row's results, and this rank's range of classes.

    `input` `[N, C]` has the logits of this rank's classes, `weight` `[C]` their weights. All ranks have the same
    targets. The caller reduces, and adds the z-loss. The collectives run over each of `groups` in turn. Without
    `shard`, there must be a single group, whose ranks then tell each other how many classes they have.
    """
    dtype, classes = accumulation_dtype(input.dtype), input.shape[1]
    row_max, log_sum, smooth, entropy, argmax = _own_classes(input, weight, terms, outputs, dtype)
    weight_sum = _weight_sum(input, weight, dtype)
    if shard is None:
        (group,) = groups
        greatest, shard = max_and_shard(row_max, classes, weight_sum, group)
    else:
        greatest = all_reduce(row_max, "max", groups)
    if target.device.type == "cpu" and _is_eager(target):
        require_targets_in_range(target, int(shard.classes), terms.ignore_index)
    place = place_of(target, shard, classes, terms.ignore_index)

    # Rows where this rank's classes are all masked (-inf) add 0 to the sum, and inf to the smoothing term.
    is_masked = (row_max == -torch.inf) & (greatest != -torch.inf)
    share = torch.where(is_masked, 0, ((row_max - greatest) + log_sum).exp())
    at = at_target(input, weight, place, terms, dtype)
    parts = [share, torch.where(place.is_here, at.weight * (greatest - at.x), 0)]
    if weight is not None:
        parts.append(torch.where(place.is_here, at.weight, 0))
    if terms.label_smoothing:
        smoothed = smooth * classes + weight_sum * (greatest - (row_max + log_sum))
        of_masked = (torch.inf if weight is None else (weight * torch.inf).sum()) if classes else 0.0
        parts.append(torch.where(is_masked, of_masked, smoothed))
    if outputs & ENTROPY:
        parts.append(torch.where(share == 0, 0, share * (((row_max - greatest) + log_sum) - entropy)))
    if outputs & DOUBLED_LSE:
        own_max, own_log_sum, *_ = _own_classes(input, None, terms.doubled(), 0, dtype)
        parts.append(torch.where(is_masked, 0, ((own_max - 2 * greatest) + own_log_sum).exp()))
    total, nll, *rest = all_reduce(torch.stack(parts), "sum", groups)
    others = list(rest)  # before 2.11, torch.compile makes `rest` a tuple

    log_sum = total.log()
    target_weight = others.pop(0) if weight is not None else place.not_ignored.to(dtype)
    ce = nll + target_weight * log_sum
    if terms.label_smoothing:
        smooth = others.pop(0) + shard.weight_sum * log_sum
        factor = smoothing(terms.label_smoothing, shard.classes)
        ce = (1 - factor) * ce + factor * smooth / shard.classes
    found = ShardedRows(
        ce=torch.where(place.not_ignored, torch.where(place.in_range, ce, torch.nan), 0),
        row_stats=torch.stack((greatest, log_sum)),
        target_weight=target_weight,
        entropy=log_sum - others.pop(0) / total if outputs & ENTROPY else None,
        argmax=_first_of_the_greatest(input, row_max == greatest, argmax, shard, groups) if outputs & ARGMAX else None,
        doubled_stats=torch.stack((2 * greatest, others.pop(0).log())) if outputs & DOUBLED_LSE else None,
    )
    return found, shard


def backward(
    gradients: OutputGrads,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    row_stats: Tensor,
    target_weight: Tensor,
    entropy: Tensor | None,
    denominators: Tensor,
    terms: LossTerms,
    groups: Sequence[Group],
    shard: VocabRange,
    *,
    in_place: bool = False,
    smoothing: Smoothing = as_given,
) -> Tensor:
    """The gradient of this rank's logits, written over them where `in_place`.

    `gradients` are those of `_backward`. That of log_prob is for this rank's classes; it needs a collective.
    """
    dtype, classes = accumulation_dtype(input.dtype), input.shape[1]
    place = place_of(target, shard, classes, terms.ignore_index)
    at = at_target(input, weight, place, terms, dtype)
    ce, z = loss_gradients(gradients, place.not_ignored, denominators, terms)
    ce = torch.where(place.not_ignored & ~place.in_range, torch.nan, ce)
    # The t, u and r of docs/design.md. `other` is the part of r that the kernel cannot compute from its inputs.
    factor = smoothing(terms.label_smoothing, shard.classes)
    t, u = ce * (1 - factor) * target_weight, ce * factor / shard.classes
    z_part = torch.zeros_like(t)
    if terms.z_loss:
        z_part = torch.where(place.not_ignored, z * (2 * terms.z_loss) * row_stats.sum(0), 0)
    other = torch.zeros_like(t) if gradients.lse is None else gradients.lse.to(dtype)
    own = torch.zeros_like(t)
    if gradients.log_prob is not None:
        own = gradients.log_prob.sum(1, dtype=dtype)
        other = other + own - all_reduce(own, "sum", groups)
    if classes == 0:
        return torch.empty_like(input)
    r = u * shard.weight_sum + z_part + other - own

    log_prob = (at.x - row_stats[0]) - row_stats[1]
    p = log_prob.exp()
    if gradients.entropy is not None:
        assert entropy is not None
        r = r - gradients.entropy.to(dtype) * (entropy + torch.where(p == 0, 0, log_prob))
    of_target = t * torch.where(place.is_here, log_prob.expm1(), p) + p * r - u * at.weight
    if gradients.log_prob is not None:
        of_target = of_target + gradients.log_prob.gather(1, place.local[:, None])[:, 0].to(dtype)
    flows = gradients.reach(place.not_ignored)
    of_target = torch.where(flows, of_target * at.slope, 0).to(input.dtype)

    grad_lse: Tensor | None
    if terms.label_smoothing:
        # The kernel treats each target as another rank's: t then multiplies p alone, as the gradient of lse does.
        local_target, smoothed, z_loss = torch.where(place.not_ignored, 0, _IGNORED), 1.0, 0.0
        grad_loss, grad_z = u * classes, None
        grad_lse = t + u * (shard.weight_sum - _weight_sum(input, weight, dtype)) + z_part + other
    else:
        local_target, smoothed, z_loss = torch.where(place.not_ignored, place.local, _IGNORED), 0.0, terms.z_loss
        grad_loss, grad_z, weight = t, z - t if terms.z_loss else None, None
        grad_lse = other if gradients.reach_ignored_rows() else None
    of_rows = LossTerms(NONE, _IGNORED, smoothed, z_loss, terms.softcap, terms.logit_scale)
    arguments = (
        grad_loss, grad_z, gradients.log_prob, grad_lse, gradients.entropy, input, local_target, weight, row_stats,
        entropy, row_stats.new_ones(2), *of_rows,
    )  # fmt: skip
    if in_place:
        OPS._backward_.default(*arguments)
        result = input
    else:
        result = OPS._backward.default(*arguments)
    # Not scatter_, which makes a float32 copy of two-byte gradients.
    rows = torch.arange(len(place.local), device=input.device)
    return result.index_put_((rows, place.local), of_target)


def reduced(
    ce: Tensor, lse: Tensor, not_ignored: Tensor, denominators: Tensor, terms: LossTerms, groups: Sequence[Group] = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its z-loss part, and the denominators, over the rows of all ranks of `groups`."""
    z = torch.where(not_ignored, terms.z_loss * lse * lse, 0) if terms.z_loss else torch.zeros_like(ce)
    if terms.reduction == NONE:
        return ce + z, z, denominators
    sums = all_reduce(torch.cat((torch.stack((ce.sum(), z.sum())), denominators)), "sum", groups)
    ce, z, denominators = sums[0], sums[1], sums[2:]
    if terms.reduction == MEAN:
        ce, z = ce / denominators[0], z / denominators[1]
    return ce + z if terms.z_loss else ce, z, denominators


def all_reduce(values: Tensor, operation: str, groups: Sequence[Group]) -> Tensor:
    """`values` reduced over all ranks of all groups."""
    for group in groups:
        # Functional, so that torch.compile can trace it.
        values = funcol.wait_tensor(funcol.all_reduce(values, operation, group))
    return values


def _own_classes(
    input: Tensor, weight: Tensor | None, terms: LossTerms, outputs: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For this rank's classes alone: max, log-sum, the mean of -w log p, entropy, argmax."""
    rows, classes = input.shape
    if classes == 0:  # there are more ranks than classes
        none = input.new_zeros((rows,), dtype=dtype)
        return none - torch.inf, none, none, none, torch.zeros_like(none, dtype=torch.int64)
    # The largest number below 1 in `dtype`: with 1, the target's part would be 0 * inf where class 0 is masked.
    smoothing = 1 - torch.finfo(dtype).eps / 2 if terms.label_smoothing else 0.0
    of_rows = LossTerms(NONE, _IGNORED, smoothing, 0.0, terms.softcap, terms.logit_scale)
    any_class = torch.zeros((rows,), dtype=torch.int64, device=input.device)
    smooth, _, _, _, argmax, entropy, row_stats, _ = OPS._forward.default(
        input, any_class, weight, *of_rows, outputs & (ENTROPY | ARGMAX), dtype,
    )  # fmt: skip
    return row_stats[0], row_stats[1], smooth, entropy, argmax


def max_and_shard(row_max: Tensor, classes: int, weight_sum: Tensor, group: Group) -> tuple[Tensor, VocabRange]:
    """The rows' max over all ranks, and this rank's range of classes, by one collective."""
    assert isinstance(group, dist.ProcessGroup)
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    # The number of classes is sent as a float, exact up to 2^24 a rank. The padding is -inf: weights may be negative.
    own = torch.stack((row_max.new_full((), classes), weight_sum))[:, None]
    padded = torch.nn.functional.pad(own, (rank, ranks - rank - 1), value=-torch.inf)
    flat = all_reduce(torch.cat((row_max, padded.flatten())), "max", (group,))
    greatest, of_ranks = flat.split([len(row_max), 2 * ranks])
    sizes, weight_sums = of_ranks[:ranks].long(), of_ranks[ranks:]
    return greatest, VocabRange(sizes[:rank].sum(), sizes.sum(), weight_sums.sum())


def own_weights(
    classes: int, weight: Tensor, group: dist.ProcessGroup, shard: VocabRange | None
) -> tuple[VocabRange, Tensor]:
    """This rank's range of classes, and their part of all classes' weights. None for `shard` costs a collective."""
    total = weight.sum()
    if shard is None:
        _, shard = max_and_shard(total.new_empty(0), classes, total, group)
    # Indexed by a tensor, so that the host need not wait for `first`.
    return shard._replace(weight_sum=total), weight[shard.first + torch.arange(classes, device=weight.device)]


def _first_of_the_greatest(
    input: Tensor, is_greatest: Tensor, argmax: Tensor, shard: VocabRange, groups: Sequence[Group]
) -> Tensor:
    """The lowest index of a NaN, or else of the greatest logit: what torch.argmax gives."""
    is_nan = input.gather(1, argmax[:, None])[:, 0].isnan() if input.shape[1] else torch.zeros_like(is_greatest)
    index = argmax + shard.first
    candidate = torch.where(is_nan, index, torch.where(is_greatest, shard.classes + index, 2 * shard.classes))
    return all_reduce(candidate, "min", groups) % shard.classes


def _weight_sum(input: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    return input.new_full((), input.shape[1], dtype=dtype) if weight is None else weight.sum(dtype=dtype)


def _is_eager(tensor: Tensor) -> bool:
    """A real tensor, outside of tracing: its values can be read."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling()
