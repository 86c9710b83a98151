# SPDX-License-Identifier: Apache-2.0
"""The Autograd kernels of the internal operators: what is saved, the backward, and the derivatives of the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npu_ce_jit.op.autograd.over_logits import OverLogits
from npu_ce_jit.op.saved import require_unchanged, seen
from npu_ce_jit.op.schema import ENTROPY, LOG_PROB, LSE, NONE, Z_LOSS, ForwardOutputs, LossTerms, Request
from npu_ce_jit.op.torch_private import (
    apply_at_this_level,
    below_autograd,
    below_this_level,
    is_batched_gradient,
    is_differentiating,
    tangent_for_outer_levels,
)

if TYPE_CHECKING:
    from npu_ce_jit.op.rows import OutputGrads

# derivatives is imported where it is called, to keep the import short: a training step in reverse mode never needs it.
OPS = torch.ops.npu_ce_jit
_READ_AGAIN = ("input", "target", "weight")


def in_requested_shape(outputs: ForwardOutputs, request: Request, batch: tuple[int, ...] = ()) -> ForwardOutputs:
    """The reduced losses of `_forward` in the shape that the caller of a public operator expects."""
    if request.terms.reduction == NONE or not request.reduced_shape:
        return outputs
    loss, z_loss, *others = outputs
    shape = batch + request.reduced_shape
    return loss.view(shape), z_loss.view(shape) if request.outputs & Z_LOSS else z_loss, *others  # type: ignore[return-value]


def call_forward(
    input: Tensor, target: Tensor, weight: Tensor | None, request: Request, inplace_backward: bool = False
) -> ForwardOutputs:
    """`_forward` through the dispatcher, its loss in the shape that was requested."""
    outputs: ForwardOutputs = OPS._forward.default(
        input, target, weight, *request.terms, request.outputs, request.loss_dtype
    )
    return in_requested_shape(outputs, request)


def record_forward(
    input: Tensor, target: Tensor, weight: Tensor | None, request: Request, inplace_backward: bool = False
) -> ForwardOutputs:
    """`call_forward` under the Autograd key."""
    if is_differentiating(input):
        return apply_at_this_level(CrossEntropy, input, target, weight, request, inplace_backward)  # type: ignore[no-any-return]
    return below_autograd(call_forward, input, target, weight, request)  # type: ignore[no-any-return]


def forward_kernel(input: Tensor, target: Tensor, weight: Tensor | None, *terms_outputs_dtype: Any) -> ForwardOutputs:
    """The Autograd kernel of `_forward`."""
    *terms, outputs, loss_dtype = terms_outputs_dtype
    return record_forward(input, target, weight, Request(LossTerms(*terms), outputs, loss_dtype, ()))


def backward_kernel(*arguments: Any) -> Tensor:
    """The Autograd kernel of `_backward`."""
    if is_differentiating(*arguments[:6]):
        return apply_at_this_level(CrossEntropyBackward, *arguments[:11], LossTerms(*arguments[11:]))  # type: ignore[no-any-return]
    return below_autograd(OPS._backward.default, *arguments)  # type: ignore[no-any-return]


def record_without_derivative(implementation: Callable[..., Any], refusal: str, *arguments: Any) -> Any:
    """Under the Autograd key, calls an operator that has no derivative; a request for one raises `refusal`.

    The call itself does not raise: a program that was traced with its backward calls such operators on tensors that
    require gradients, and never differentiates them.
    """
    if is_differentiating(*(a for a in arguments if isinstance(a, Tensor))):
        return apply_at_this_level(_WithoutDerivative, implementation, refusal, *arguments)
    return implementation(*arguments)


class CrossEntropy(torch.autograd.Function):
    """Profilers and `grad_fn` show this name."""

    @staticmethod
    def forward(*arguments: Any) -> ForwardOutputs:
        return below_this_level(call_forward, *arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: ForwardOutputs) -> None:
        input, target, weight, request, inplace_backward = inputs
        _, z_loss, log_prob, lse, argmax, entropy, row_stats, denominators = output
        ctx.request, ctx.seen = request, seen(input, target, weight)
        ctx.over_logits = OverLogits(input, inplace_backward)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            argmax,
            row_stats,
            denominators,
            *[
                tensor
                for bit, tensor in ((Z_LOSS, z_loss), (LOG_PROB, log_prob), (LSE, lse), (ENTROPY, entropy))
                if not request.outputs & bit
            ],
        )
        # log_prob is not saved: it takes [N, C] of memory, and rounded to bf16 it costs the gradient a digit.
        ctx.save_for_backward(input, target, weight, row_stats, entropy, denominators)
        ctx.save_for_forward(input, target, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        loss, z_loss, log_prob, lse, _, entropy, *_ = grad_outputs
        gradients = (loss, z_loss, log_prob, lse, entropy)
        if not ctx.needs_input_grad[0] or all(g is None for g in gradients):
            return None, None, None, None, None
        ctx.over_logits.require_unspent()
        input, *saved = ctx.saved_tensors
        require_unchanged(ctx.seen, _READ_AGAIN, (input, *saved[:2]))
        arguments = (*gradients, input, *saved, *ctx.request.terms)
        if torch.compiler.is_compiling() or is_differentiating(*gradients, input):
            return OPS._backward.default(*arguments), None, None, None, None
        if ctx.over_logits.allowed(input) and not any(map(is_batched_gradient, gradients)):
            below_autograd(OPS._backward_.default, *arguments)
            return ctx.over_logits.spend(input), None, None, None, None
        return below_autograd(OPS._backward.default, *arguments), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, direction: Tensor | None, *_: Any) -> Any:
        if direction is None:
            return (None,) * 8
        from npu_ce_jit.op.autograd.derivatives import outputs_tangent

        request: Request = ctx.request

        def formula(input: Tensor, target: Tensor, weight: Tensor | None, direction: Tensor) -> Any:
            tangents = outputs_tangent(input, target, weight, request.terms, direction)
            return _as_outputs(tangents, request, input.dtype)

        loss, z_loss, log_prob, lse, entropy = tangent_for_outer_levels(formula, *ctx.saved_tensors, direction)
        return loss, z_loss, log_prob, lse, None, entropy, None, None


def _as_outputs(tangents: OutputGrads, request: Request, input_dtype: torch.dtype) -> list[Tensor | None]:
    """Tangents in the dtypes and shapes of the outputs that were asked for."""
    loss, z_loss, log_prob, lse, entropy = tangents
    assert loss is not None and z_loss is not None and log_prob is not None
    if request.terms.reduction != NONE:
        loss, z_loss = loss.reshape(request.reduced_shape), z_loss.reshape(request.reduced_shape)
    outputs = (
        (Z_LOSS, z_loss.to(request.loss_dtype)),
        (LOG_PROB, log_prob.to(input_dtype)),
        (LSE, lse),
        (ENTROPY, entropy),
    )
    return [loss.to(request.loss_dtype), *(t if request.outputs & bit else None for bit, t in outputs)]


class CrossEntropyBackward(torch.autograd.Function):
    """`_backward` as a function of the outputs' gradients and of the logits."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        *tensors, terms = arguments
        return below_this_level(OPS._backward.default, *tensors, *terms)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *gradients, input, target, weight, _row_stats, _entropy, _denominators, ctx.terms = inputs
        ctx.seen = seen(input, target, weight)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*gradients, input, target, weight)
        ctx.save_for_forward(*gradients, input, target, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        (direction,) = grad_outputs
        if direction is None:
            return (None,) * 12
        from npu_ce_jit.op.autograd.derivatives import gradient_tangent, outputs_tangent
        from npu_ce_jit.op.rows import OutputGrads

        *saved, input, target, weight = ctx.saved_tensors
        require_unchanged(ctx.seen, _READ_AGAIN, (input, target, weight))
        gradients = OutputGrads(*saved)
        tangents = outputs_tangent(input, target, weight, ctx.terms, direction)
        return (
            *(
                None if g is None else tangent.to(g.dtype).reshape(g.shape)  # type: ignore[union-attr]
                for g, tangent in zip(gradients, tangents, strict=True)
            ),
            gradient_tangent(gradients, input, target, weight, ctx.terms, direction).to(input.dtype),
            *(None,) * 6,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        from npu_ce_jit.op.autograd.derivatives import gradient, gradient_tangent
        from npu_ce_jit.op.rows import OutputGrads

        def formula(*tensors: Tensor | None) -> Tensor:
            saved, (input, target, weight) = OutputGrads(*tensors[:5]), tensors[5:8]
            moved, direction = OutputGrads(*tensors[8:13]), tensors[13]
            assert input is not None and target is not None
            result = gradient(moved, input, target, weight, ctx.terms)
            if direction is not None:
                result = result + gradient_tangent(saved, input, target, weight, ctx.terms, direction)
            return result.to(input.dtype)

        return tangent_for_outer_levels(formula, *ctx.saved_tensors, *tangents[:6])


def no_second_derivative(name: str, instead: str) -> NotImplementedError:
    return NotImplementedError(
        f"expected no derivative of the gradient of {name}, got a request for one (create_graph=True); "
        f"{instead} differentiable to any order"
    )


class _WithoutDerivative(torch.autograd.Function):
    @staticmethod
    def forward(implementation: Callable[..., Any], refusal: str, *arguments: Any) -> Any:
        return below_this_level(implementation, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.refusal = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        raise NotImplementedError(ctx.refusal)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(ctx.refusal)
