# SPDX-License-Identifier: Apache-2.0
"""Derivatives of the two internal operators, in plain torch operators, so that every higher order follows from them.

The gradient is the gradient of a scalar, so its Jacobian is symmetric: the tangent of the gradient along `v` is
also the gradient of `<v, gradient>`. Two formulas therefore serve forward AD, double backward and all compositions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.op.rows import (
    Coefficients,
    OutputGrads,
    RowTerms,
    as_logits,
    as_rows,
    coefficients,
    denominators_of,
    entropy_of,
    plogp,
    rows_of,
)
from npu_ce_jit.op.schema import MEAN, NONE, LossTerms


def outputs_tangent(
    input: Tensor, target: Tensor, weight: Tensor | None, terms: LossTerms, direction: Tensor
) -> OutputGrads:
    """The tangents of `_forward`'s outputs along the logits' tangent `direction`."""
    rows = rows_of(input, target, weight, terms)
    log_prob = torch.log_softmax(rows.x, 1)
    denominators = denominators_of(rows)
    x_tangent = as_rows(direction).to(rows.x.dtype) * rows.slope
    lse = (log_prob.exp() * x_tangent).sum(1)
    log_prob_tangent = x_tangent - lse[:, None]

    ce = -log_prob_tangent.gather(1, rows.safe_target[:, None])[:, 0] * rows.target_weight
    if terms.label_smoothing:
        smooth = -(log_prob_tangent * rows.weight).sum(1)
        ce = (1 - terms.label_smoothing) * ce + (terms.label_smoothing / rows.x.shape[1]) * smooth
    loss = _reduce(torch.where(rows.not_ignored, ce, 0), terms, denominators[0])
    z_loss = torch.zeros_like(loss)
    if terms.z_loss:
        z_rows = 2 * terms.z_loss * torch.logsumexp(rows.x, 1) * lse
        z_loss = _reduce(torch.where(rows.not_ignored, z_rows, 0), terms, denominators[1])
    return OutputGrads(loss + z_loss, z_loss, log_prob_tangent, lse, _entropy_tangent(log_prob, x_tangent))


def gradient(gradients: OutputGrads, input: Tensor, target: Tensor, weight: Tensor | None, terms: LossTerms) -> Tensor:
    """`_backward` as plain operators: linear in `gradients`."""
    parts = _parts(gradients, input, target, weight, terms)
    return as_logits((parts.log_prob.exp() * parts.factor + parts.pull) * parts.rows.slope, input)


def gradient_tangent(
    gradients: OutputGrads, input: Tensor, target: Tensor, weight: Tensor | None, terms: LossTerms, direction: Tensor
) -> Tensor:
    """The tangent of `gradient` along the logits' tangent `direction`; also the gradient of <direction, gradient>."""
    rows, c, log_prob, factor, pull = _parts(gradients, input, target, weight, terms)
    p = log_prob.exp()
    direction = as_rows(direction).to(rows.x.dtype)
    x_tangent = direction * rows.slope
    lse_tangent = (p * x_tangent).sum(1)
    log_prob_tangent = x_tangent - lse_tangent[:, None]

    factor_tangent = (c.z * lse_tangent)[:, None]
    if c.entropy is not None:
        entropy_tangent = _entropy_tangent(log_prob, x_tangent)
        factor_tangent = factor_tangent + c.entropy[:, None] * (entropy_tangent[:, None] + log_prob_tangent)
    result = p * (log_prob_tangent * factor + factor_tangent) * rows.slope
    if rows.curvature is not None:
        result = result + (p * factor + pull) * rows.curvature * direction
    return as_logits(result, input)


class _Parts(NamedTuple):
    """The gradient in x' is `exp(log_prob) * factor + pull`; `pull` does not depend on the logits."""

    rows: RowTerms
    coefficients: Coefficients
    log_prob: Tensor
    factor: Tensor
    pull: Tensor


def _parts(gradients: OutputGrads, input: Tensor, target: Tensor, weight: Tensor | None, terms: LossTerms) -> _Parts:
    if not gradients.reach_ignored_rows():
        # An ignored row's logits may hold NaN, and 0 * NaN is NaN.
        input = torch.where((target != terms.ignore_index)[:, None], as_rows(input), 0)
    rows = rows_of(input, target, weight, terms)
    log_prob = torch.log_softmax(rows.x, 1)
    entropy = None if gradients.entropy is None else entropy_of(log_prob)
    c = coefficients(rows, gradients, denominators_of(rows), terms)
    factor = (c.target + c.rest(rows, torch.logsumexp(rows.x, 1), entropy))[:, None]
    if c.entropy is not None:
        factor = factor + c.entropy[:, None] * torch.where(log_prob == -torch.inf, 0, log_prob)
    pull = -c.uniform[:, None] * rows.weight
    pull = pull.scatter_add(1, rows.safe_target[:, None], -c.target[:, None])
    return _Parts(rows, c, log_prob, factor, pull if c.log_prob is None else pull + c.log_prob)


def _entropy_tangent(log_prob: Tensor, x_tangent: Tensor) -> Tensor:
    weighted = plogp(log_prob) + log_prob.exp() * entropy_of(log_prob)[:, None]
    return -(weighted * x_tangent).sum(1)


def _reduce(values: Tensor, terms: LossTerms, denominator: Tensor) -> Tensor:
    if terms.reduction == NONE:
        return values
    return values.sum() / denominator if terms.reduction == MEAN else values.sum()
