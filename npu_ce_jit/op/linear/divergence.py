# SPDX-License-Identifier: Apache-2.0
"""`_linear_divergence`: KL or Jensen-Shannon divergence of student and teacher, from the hidden states of both.

For each chunk of rows both models' log-probabilities are made, and the student's logits are overwritten with their
gradient. As for `linear_cross_entropy`, forward makes the gradients of a sum or a mean, and backward scales them; for
reduction "none", and in float16, backward makes the logits of both again.

It is a torch.library.custom_op, opaque to a tracer: a graph that showed the chunks could keep all of them alive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.op.autograd.functions import no_second_derivative
from npu_ce_jit.op.linear.layer import Layer, fake_gradients
from npu_ce_jit.op.linear.operator import FORWARD_HAS_THEM, scaled
from npu_ce_jit.op.saved import require_storage, require_unchanged, seen
from npu_ce_jit.op.schema import LOG_PROB, MEAN, NAMESPACE, NONE, accumulation_dtype
from npu_ce_jit.op.torch_private import is_differentiating

_NAMES = (
    "input", "linear_weight", "linear_bias", "teacher_input", "teacher_linear_weight", "teacher_linear_bias", "mask",
)  # fmt: skip


def divergence(
    student: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    mask: Tensor | None,
    grad_loss: Tensor | None,
    temperature: float,
    softcap: float | None,
    teacher_softcap: float | None,
    beta: float,
    reduction: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and the gradients that `output_mask` asks for: those for `grad_loss`, for 1 where it is None."""
    require_storage(_NAMES, (student, student_weight, student_bias, teacher, teacher_weight, teacher_bias, mask))
    of_student = Layer((student, student_weight, student_bias), temperature, softcap, mask, output_mask)
    of_teacher = Layer((teacher, teacher_weight, teacher_bias), temperature, teacher_softcap, mask)
    factor = _factor_of_rows(len(student), mask, grad_loss, reduction, of_student.dtype, student.device)
    losses = factor.new_zeros(len(student))
    for chunk in of_student.chunks():
        losses[chunk] = _of_chunk(chunk, of_student, of_teacher, beta, factor if any(output_mask) else None)
    if mask is not None:
        losses = torch.where(mask, losses, 0)
    loss = losses if reduction == NONE else losses.sum()
    if reduction == MEAN:
        loss = loss / _count(len(student), mask)
    return loss, *of_student.gradients()  # type: ignore[return-value]


def _of_chunk(chunk: slice, student: Layer, teacher: Layer, beta: float, factor: Tensor | None) -> Tensor:
    """The chunk's losses. With `factor`, the gradient of each row's loss, adds to the student's gradients."""
    log_t = teacher.forward(teacher.logits(chunk), LOG_PROB)[2]
    logits = student.logits(chunk)
    _, _, log_s, _, _, _, row_stats, _ = student.forward(logits, LOG_PROB)
    losses, gradient = _loss_and_gradient(log_s, log_t, beta)
    if factor is not None:
        del log_s, log_t
        gradient *= factor[chunk, None]
        student.backward_(logits, row_stats, log_prob=gradient, lse=None)
        student.add_gradients(chunk, logits)
    return losses


def _loss_and_gradient(log_s: Tensor, log_t: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Each row's loss, and its gradient with respect to `log_s` up to a multiple of exp(log_s) over the whole row: the
    backward of log_softmax cancels that.
    """
    if beta == 0.0:
        t = log_t.exp()
        loss = _terms_of_kl(t, log_t, log_s).sum(1)
        return loss, t.neg_()
    if beta == 1.0:
        terms = _terms_of_kl(log_s.exp(), log_s, log_t)
        return terms.sum(1), terms
    log_m, others = log_t + math.log(beta), log_s + math.log1p(-beta)
    torch.logaddexp(log_m, others, out=log_m)
    del others
    of_teacher = _terms_of_kl(log_t.exp(), log_t, log_m).sum(1)
    terms = _terms_of_kl(log_s.exp(), log_s, log_m).mul_(1 - beta)
    return beta * of_teacher + terms.sum(1), terms


def _terms_of_kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """p * log(p / q), by class; a class of probability 0 adds 0, not 0 * inf."""
    ratio = log_p - log_q
    return ratio.mul_(p).masked_fill_(p == 0, 0)


def _factor_of_rows(
    rows: int, mask: Tensor | None, grad_loss: Tensor | None, reduction: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`[N]`: the gradient of each row's loss."""
    factor = torch.ones(rows, dtype=dtype, device=device)
    if grad_loss is not None:
        factor = factor * grad_loss.to(dtype)
    if reduction == MEAN:
        factor = factor / _count(rows, mask)
    return factor if mask is None else torch.where(mask, factor, 0)


def _count(rows: int, mask: Tensor | None) -> Tensor | float:
    """How many rows count; a mean over none of them is NaN."""
    if mask is None:
        return rows or math.nan
    return mask.sum()


linear_divergence = torch.library.custom_op(
    f"{NAMESPACE}::_linear_divergence",
    divergence,
    mutates_args=(),
    schema=(
        "(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor teacher_input, "
        "Tensor teacher_linear_weight, Tensor? teacher_linear_bias, Tensor? mask, Tensor? grad_loss, "
        "float temperature, float? softcap, float? teacher_softcap, float beta, int reduction, bool[3] output_mask) "
        "-> (Tensor loss, Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias)"
    ),
)


@linear_divergence.register_fake
def _(student: Tensor, student_weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    reduction, output_mask = others[-2:]
    loss = student.new_empty(student.shape[:1] if reduction == NONE else (), dtype=accumulation_dtype(student.dtype))
    return loss, *fake_gradients(student, student_weight, output_mask)


def output_mask(layer: Sequence[Tensor | None], reduction: int) -> list[bool]:
    """The gradients that forward makes: all that are needed, or none, as for `linear_cross_entropy`."""
    in_forward = reduction != NONE and all(tensor is None or tensor.dtype is not torch.float16 for tensor in layer)
    return [in_forward and torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in layer]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, _grad_loss, _, _, _, _, _, mask = inputs
    _, *gradients = output
    ctx.options, ctx.has_gradients, ctx.seen = inputs[8:13], any(mask), seen(*operands)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*gradients)
    ctx.save_for_backward(*operands, *gradients)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> Any:
    nothing = (None,) * 14
    if grad_loss is None:
        return nothing
    saved = ctx.saved_tensors
    operands, gradients = saved[:7], saved[7:]
    if is_differentiating(grad_loss, *operands[:3]):
        raise no_second_derivative("linear_kl_div", "F.linear and log_softmax are")
    wanted = list(ctx.needs_input_grad[:3])
    if ctx.has_gradients:
        gradients = scaled(gradients, grad_loss, wanted)
    else:
        require_unchanged(ctx.seen, _NAMES, operands, FORWARD_HAS_THEM)
        _, *gradients = linear_divergence(*operands, grad_loss, *ctx.options, wanted)
    return (*(g if asked else None for g, asked in zip(gradients, wanted, strict=True)), *nothing[3:])


linear_divergence.register_autograd(_backward, setup_context=_setup_context)
