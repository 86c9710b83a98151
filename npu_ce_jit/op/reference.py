# SPDX-License-Identifier: Apache-2.0
"""`_forward` and `_backward` in plain torch: what a machine without a compiler runs, and the tests' second oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.op.checks import require_targets_in_range
from npu_ce_jit.op.rows import (
    OutputGrads,
    as_logits,
    coefficients,
    denominators_of,
    entropy_of,
    reduce_rows,
    rows_of,
)
from npu_ce_jit.op.schema import ARGMAX, ENTROPY, LOG_PROB, LSE, Z_LOSS, ForwardOutputs, LossTerms


def forward(input: Tensor, target: Tensor, weight: Tensor | None, *terms_outputs_dtype: Any) -> ForwardOutputs:
    """`_forward` of docs/design.md. IndexError for a target out of range."""
    require_targets_in_range(target, input.shape[1], LossTerms(*terms_outputs_dtype[:-2]).ignore_index)
    return forward_of_targets_in_range(input, target, weight, *terms_outputs_dtype)


def forward_of_targets_in_range(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *terms_outputs_dtype: Any,
) -> ForwardOutputs:
    """`forward` without its check of the targets' values, which cannot be traced."""
    *numbers, outputs, loss_dtype = terms_outputs_dtype
    terms = LossTerms(*numbers)
    rows = rows_of(input, target, weight, terms)
    row_max = rows.x.amax(1)
    shifted = rows.x - row_max[:, None]
    log_sum = shifted.exp().sum(1).log()
    log_prob = shifted - log_sum[:, None]
    lse = row_max + log_sum
    denominators = denominators_of(rows)

    ce = -log_prob.gather(1, rows.safe_target[:, None])[:, 0] * rows.target_weight
    if terms.label_smoothing:
        smooth = -(log_prob * rows.weight).sum(1)
        ce = (1 - terms.label_smoothing) * ce + (terms.label_smoothing / input.shape[1]) * smooth
    loss = reduce_rows(torch.where(rows.not_ignored, ce, 0), terms.reduction, denominators[0])
    z_rows = torch.where(rows.not_ignored, terms.z_loss * lse * lse, 0) if terms.z_loss else torch.zeros_like(lse)
    z_value = reduce_rows(z_rows, terms.reduction, denominators[1])
    if terms.z_loss:
        loss = loss + z_value

    def if_asked(bit: int, value: Tensor) -> Tensor:
        return value if outputs & bit else value.new_empty(0)

    return (
        loss.to(loss_dtype),
        if_asked(Z_LOSS, z_value.to(loss_dtype)),
        if_asked(LOG_PROB, log_prob.to(input.dtype).contiguous()),
        if_asked(LSE, lse),
        if_asked(ARGMAX, rows.x.argmax(1)),
        if_asked(ENTROPY, entropy_of(log_prob)),
        torch.stack((row_max, log_sum)),
        denominators,
    )


def backward(
    grad_loss: Tensor | None,
    grad_z_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    row_stats: Tensor,
    entropy: Tensor | None,
    denominators: Tensor,
    *numbers: Any,
) -> Tensor:
    """`_backward` of docs/design.md."""
    terms = LossTerms(*numbers)
    gradients = OutputGrads(grad_loss, grad_z_loss, grad_log_prob, grad_lse, grad_entropy)
    rows = rows_of(input, target, weight, terms)
    row_max, log_sum = row_stats
    log_prob = (rows.x - row_max[:, None]) - log_sum[:, None]
    c = coefficients(rows, gradients, denominators, terms)

    factor = c.rest(rows, row_max + log_sum, entropy)[:, None]
    if c.entropy is not None:
        factor = factor + c.entropy[:, None] * torch.where(log_prob == -torch.inf, 0, log_prob)
    # Nothing is written in place, because programs that were decomposed by tracing hold these operators too.
    result: Tensor = log_prob.exp() * (factor + c.target[:, None])
    at_target = rows.safe_target[:, None]
    target_log_prob = log_prob.gather(1, at_target)
    # p - 1 at the target cancels for a confident row; expm1 does not.
    target_factor = factor.expand_as(log_prob).gather(1, at_target)
    at_target_result = c.target[:, None] * target_log_prob.expm1() + target_log_prob.exp() * target_factor
    # An ignored row has safe_target 0 in place of a target; its c.target is 0, so the two forms agree there.
    result = result.scatter(1, at_target, at_target_result)
    if terms.label_smoothing:
        result = result - c.uniform[:, None] * rows.weight
    if c.log_prob is not None:
        result = result + c.log_prob
    # An ignored row's logits may hold NaN, and 0 * NaN is NaN.
    result = torch.where(gradients.reach(rows.not_ignored)[:, None], result, 0)
    return as_logits((result * rows.slope).to(input.dtype), input).contiguous()


def backward_(*arguments: object) -> None:
    """`_backward_`: writes the gradient over the logits, the sixth argument."""
    input = arguments[5]
    assert isinstance(input, Tensor)
    input.copy_(backward(*arguments))  # type: ignore[arg-type]
