# SPDX-License-Identifier: Apache-2.0
"""The quantities of a row of logits, in plain differentiable torch operators.

`reference` and `derivatives` both build on them; docs/design.md section 2 has the formulas.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.op.schema import MEAN, NONE, LossTerms, accumulation_dtype


class RowTerms(NamedTuple):
    """`[N, C]` and `[N]` quantities in the accumulation dtype. `x` is the transformed logits x'."""

    x: Tensor
    slope: Tensor | float  # dx'/dx
    curvature: Tensor | None  # d2x'/dx2; None where x' is linear in x
    not_ignored: Tensor  # bool [N]
    safe_target: Tensor  # int64 [N]: the target, 0 where ignored
    weight: Tensor  # [C]
    target_weight: Tensor  # [N]: weight[target], 0 where ignored


class OutputGrads(NamedTuple):
    """Gradients (or tangents) of the differentiable outputs of `_forward`; None where there is none."""

    loss: Tensor | None
    z_loss: Tensor | None
    log_prob: Tensor | None
    lse: Tensor | None
    entropy: Tensor | None

    def reach_ignored_rows(self) -> bool:  # no property: torch 2.10 and before do not trace those of a NamedTuple
        """Whether ignored rows may have a gradient: not from the losses, but from their log_prob, lse and entropy."""
        return self.log_prob is not None or self.lse is not None or self.entropy is not None

    def reach(self, not_ignored: Tensor) -> Tensor:
        """Bool `[N]`: whether a gradient flows into the row. A gradient of lse or entropy that is 0 does not count."""
        if self.log_prob is not None:
            return torch.ones_like(not_ignored)
        for gradient in (self.lse, self.entropy):
            not_ignored = not_ignored if gradient is None else not_ignored | (gradient != 0)
        return not_ignored


class Coefficients(NamedTuple):
    """The gradients spread over the rows, `[N]` each: the t, u, b of docs/design.md, and what its r is made of."""

    target: Tensor
    uniform: Tensor
    entropy: Tensor | None
    z: Tensor  # multiplies lse
    lse: Tensor | None
    log_prob: Tensor | None  # [N, C]

    def rest(self, rows: RowTerms, lse: Tensor, entropy: Tensor | None) -> Tensor:
        """The r of docs/design.md."""
        total = self.uniform * rows.weight.sum() + self.z * lse
        if self.lse is not None:
            total = total + self.lse
        if self.entropy is not None and entropy is not None:
            total = total + self.entropy * entropy
        return total if self.log_prob is None else total - self.log_prob.sum(1)


class Transformed(NamedTuple):
    """x' and its derivatives."""

    x: Tensor
    slope: Tensor | float
    curvature: Tensor | None  # None where x' is linear in x


def transformed(x: Tensor, terms: LossTerms) -> Transformed:
    """Softcap and logit_scale, in the dtype of `x`."""
    if not terms.softcap:
        return Transformed(x if terms.logit_scale == 1.0 else x * terms.logit_scale, terms.logit_scale, None)
    tanh = torch.tanh(x * (terms.logit_scale / terms.softcap))
    slope = terms.logit_scale * (1 - tanh * tanh)
    return Transformed(terms.softcap * tanh, slope, (-2 * terms.logit_scale / terms.softcap) * tanh * slope)


def as_rows(logits: Tensor) -> Tensor:
    """`[N, C]` logits as they are; of `[N, C, L]` ones `[N * L, C]`, a row for each position."""
    return logits if logits.dim() == 2 else logits.movedim(1, 2).reshape(-1, logits.shape[1])


def as_logits(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_rows`, for logits of the shape of `like`."""
    if like.dim() == 2:
        return rows
    images, classes, positions = like.shape
    return rows.reshape(images, positions, classes).movedim(2, 1)


def rows_of(input: Tensor, target: Tensor, weight: Tensor | None, terms: LossTerms) -> RowTerms:
    dtype = accumulation_dtype(input.dtype)
    x, slope, curvature = transformed(as_rows(input).to(dtype), terms)
    not_ignored = target != terms.ignore_index
    safe_target = torch.where(not_ignored, target, 0).long()
    class_weight = x.new_ones(x.shape[1]) if weight is None else weight.to(dtype)
    target_weight = torch.where(not_ignored, class_weight[safe_target], 0)
    return RowTerms(x, slope, curvature, not_ignored, safe_target, class_weight, target_weight)


def weight_of_targets(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """`[..., N]`: 0 where ignored or out of range; bool where `weight` is None, and then not 0 out of range."""
    not_ignored = target != ignore_index
    if weight is None:
        return not_ignored
    # The kernels report a target out of range. It stays out of the gather: no manual page says that an NPU checks its
    # bounds.
    in_range = not_ignored & (target >= 0) & (target < len(weight))
    return weight[torch.where(in_range, target, 0).long()].mul(in_range)


def denominators_of_targets(target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """`denominators_of` from the targets `[..., N]` alone: `[..., 2]`."""
    counts = (target != ignore_index).sum(-1).to(dtype)
    weights = counts if weight is None else weight_of_targets(target, weight, ignore_index).sum(-1)
    return torch.stack((weights, counts), -1)


def denominators_of(rows: RowTerms) -> Tensor:
    """`[2]`: the weight of the rows that are not ignored, and their count."""
    return torch.stack((rows.target_weight.sum(), rows.not_ignored.sum().to(rows.target_weight.dtype)))


def reduce_rows(values: Tensor, reduction: int, denominator: Tensor) -> Tensor:
    """`[N]` values to the loss's shape; on a CPU added up in float64, which takes N additions and no [N, C] memory."""
    if reduction == NONE:
        return values
    # An NPU has no float64.
    total = (values.double() if values.device.type == "cpu" else values).sum()
    return (total / denominator if reduction == MEAN else total).to(values.dtype)


def coefficients(rows: RowTerms, gradients: OutputGrads, denominators: Tensor, terms: LossTerms) -> Coefficients:
    """Linear in `gradients`. What comes from the losses is 0 for an ignored row, even where a denominator is 0."""
    dtype, classes = rows.x.dtype, rows.x.shape[1]
    ce, z = loss_gradients(gradients, rows.not_ignored, denominators, terms)
    zero = torch.zeros_like(ce)
    return Coefficients(
        target=ce * (1 - terms.label_smoothing) * rows.target_weight,
        uniform=ce * (terms.label_smoothing / classes) if terms.label_smoothing else zero,
        entropy=None if gradients.entropy is None else -gradients.entropy.to(dtype),
        z=z * (2 * terms.z_loss) if terms.z_loss else zero,
        lse=None if gradients.lse is None else gradients.lse.to(dtype),
        log_prob=None if gradients.log_prob is None else gradients.log_prob.to(dtype),
    )


def loss_gradients(
    gradients: OutputGrads, not_ignored: Tensor, denominators: Tensor, terms: LossTerms
) -> tuple[Tensor, Tensor]:
    """`[N]`: the gradient of each row's cross entropy, and of its z-loss."""
    ce = _on_rows(gradients.loss, not_ignored, denominators.dtype, terms)
    z = ce + _on_rows(gradients.z_loss, not_ignored, denominators.dtype, terms)
    if terms.reduction == MEAN:
        ce, z = ce / denominators[0], z / denominators[1]
    # Ignored rows are set to 0, not multiplied by it: over a denominator of 0 they are inf, and 0 * inf is NaN.
    return torch.where(not_ignored, ce, 0), torch.where(not_ignored, z, 0)


def entropy_of(log_prob: Tensor) -> Tensor:
    """`[N]`; a class of probability 0 adds 0, not 0 * inf."""
    return -plogp(log_prob).sum(1)


def plogp(log_prob: Tensor) -> Tensor:
    """p * log(p), 0 where p is 0."""
    p = log_prob.exp()
    return torch.where(p == 0, 0, p * log_prob)


def squared_probs(row_stats: Tensor, doubled_stats: Tensor, not_ignored: Tensor) -> Tensor:
    """`[N]`: sum(p^2), from the row_stats of x' and of 2x'; the max of 2x' is twice that of x', so the two cancel."""
    return torch.where(not_ignored, (doubled_stats[1] - 2 * row_stats[1]).exp(), 0)


def _on_rows(gradient: Tensor | None, not_ignored: Tensor, dtype: torch.dtype, terms: LossTerms) -> Tensor:
    """A loss's gradient ([N], or [] or [1] where it was reduced) for each row, not yet divided by a denominator."""
    if gradient is None:
        return torch.zeros_like(not_ignored, dtype=dtype)
    gradient = gradient.to(dtype)
    return gradient if terms.reduction == NONE else gradient.reshape(()).expand_as(not_ignored)
