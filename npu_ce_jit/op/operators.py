# SPDX-License-Identifier: Apache-2.0
"""The public operators, composed of internal ones. In a graph each is a single node, which stands for the code here.

A loss is three steps: `prepare_*` checks the arguments, a forward runs, `select_*` picks what the operator returns. The
kernels of a loss differ in the forward alone: `call_forward` here and below autograd, `record_forward` in
`record_*`, that of a whole batch under vmap.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.op import checks
from npu_ce_jit.op.autograd.functions import OPS, call_forward, record_forward, record_without_derivative
from npu_ce_jit.op.schema import (
    ARGMAX,
    ENTROPY,
    LOG_PROB,
    LSE,
    MEAN,
    REDUCTIONS,
    Z_LOSS,
    ForwardOutputs,
    LossTerms,
    Request,
    accumulated,
    accumulation_dtype,
)


class Prepared(NamedTuple):
    """What a forward takes."""

    input: Tensor
    target: Tensor
    weight: Tensor | None
    request: Request
    inplace_backward: bool = False


def npu_cross_entropy_loss(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The drop-in: (loss, log_prob, zloss, lse_for_zloss)."""
    return select_npu_cross_entropy_loss(call_forward(*prepare_npu_cross_entropy_loss(*arguments, **options)))


def record_npu_cross_entropy_loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Its Autograd kernel."""
    return select_npu_cross_entropy_loss(record_forward(*prepare_npu_cross_entropy_loss(*arguments)))


def prepare_npu_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
    return_zloss: bool = False,
) -> Prepared:
    checks.check_loss(input, target, weight)
    terms = checked_terms(
        reduction, ignore_index, label_smoothing, "lse_square_scale_for_zloss", lse_square_scale_for_zloss, None, 1.0
    )
    checks.check_weight_has_no_gradient(weight)
    outputs = LOG_PROB | (Z_LOSS if return_zloss else 0) | (LSE if lse_square_scale_for_zloss else 0)
    return Prepared(input, target, accumulated(weight, input), Request(terms, outputs, input.dtype, (1,)))


def select_npu_cross_entropy_loss(outputs: ForwardOutputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, z_loss, log_prob, lse, *_ = outputs
    # torch_npu documents lse_for_zloss as not differentiable; the z-loss's gradient goes through loss and zloss.
    return loss, log_prob, z_loss, lse.detach() if lse.requires_grad else lse


def cross_entropy(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, z_loss, lse, argmax, entropy), with shape [0] for what was not asked."""
    return select_cross_entropy(call_forward(*prepare_cross_entropy(*arguments, **options)))


def record_cross_entropy(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Its Autograd kernel."""
    return select_cross_entropy(record_forward(*prepare_cross_entropy(*arguments)))


def prepare_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: bool = False,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_lse: bool = False,
    return_argmax: bool = False,
    return_entropy: bool = False,
    loss_dtype: torch.dtype | None = None,
    inplace_backward: bool = False,
) -> Prepared:
    checks.check_logits(input, target, weight)
    terms = checked_terms(reduction, ignore_index, label_smoothing, "z_loss", z_loss, softcap, logit_scale)
    checks.check_loss_dtype(input, loss_dtype)
    checks.check_weight_has_no_gradient(weight)
    if inplace_backward:
        checks.check_inplace_backward(input)
    outputs = (
        (Z_LOSS if return_z_loss else 0)
        | (LSE if return_lse else 0)
        | (ARGMAX if return_argmax else 0)
        | (ENTROPY if return_entropy else 0)
    )
    request = Request(terms, outputs, loss_dtype or input.dtype, ())
    return Prepared(input, target, accumulated(weight, input), request, inplace_backward)


def select_cross_entropy(outputs: ForwardOutputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss, z_loss, _, lse, argmax, entropy, *_ = outputs
    return loss, z_loss, lse, argmax, entropy


def npu_cross_entropy_loss_backward(
    grad_loss: Tensor,
    log_prob: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    grad_zloss: Tensor | None = None,
    lse_for_zloss: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
) -> Tensor:
    """The drop-in's backward. `_backward` gets log_prob as logits with row_stats 0, and z-loss as a gradient of lse."""
    from npu_ce_jit.op.rows import denominators_of_targets  # most programs leave the backward pass to autograd

    checks.check_backward(
        grad_loss,
        log_prob,
        target,
        weight,
        grad_zloss,
        lse_for_zloss,
        reduction,
        label_smoothing,
        lse_square_scale_for_zloss,
    )
    terms = LossTerms(REDUCTIONS[reduction], ignore_index, label_smoothing, 0.0, 0.0, 1.0)
    dtype = accumulation_dtype(log_prob.dtype)
    weight = accumulated(weight, log_prob)
    denominators = denominators_of_targets(target, weight, ignore_index, dtype)
    grad_lse = None
    if lse_square_scale_for_zloss and lse_for_zloss is not None:
        grad_z = grad_loss.to(dtype) if grad_zloss is None else grad_loss.to(dtype) + grad_zloss.to(dtype)
        if terms.reduction == MEAN:
            grad_z = grad_z / (target != ignore_index).sum()  # not denominators[1]: DTensors refuse that before 2.8
        grad_lse = torch.where(
            target != ignore_index, grad_z * (2 * lse_square_scale_for_zloss) * lse_for_zloss.to(dtype), 0
        )
    row_stats = log_prob.new_zeros((2, log_prob.shape[0]), dtype=dtype)
    return OPS._backward.default(  # type: ignore[no-any-return]
        grad_loss, None, None, grad_lse, None, log_prob, target, weight, row_stats, None, denominators, *terms
    )


def record_npu_cross_entropy_loss_backward(*arguments: Any) -> Tensor:
    """The Autograd kernel of `npu_cross_entropy_loss_backward`."""
    return record_without_derivative(  # type: ignore[no-any-return]
        npu_cross_entropy_loss_backward,
        "expected no derivative of npu_cross_entropy_loss_backward, got a request for one: it has lost the logits; "
        "differentiate npu_cross_entropy_loss twice instead (create_graph=True), which is exact",
        *arguments,
    )


@lru_cache(maxsize=256)
def checked_terms(
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    scale_name: str,
    scale: float,
    softcap: float | None,
    logit_scale: float,
) -> LossTerms:
    checks.check_terms(reduction, label_smoothing, {scale_name: scale, "logit_scale": logit_scale}, softcap)
    return LossTerms(REDUCTIONS[reduction], ignore_index, label_smoothing, scale, softcap or 0.0, logit_scale)
