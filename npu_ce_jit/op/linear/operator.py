# SPDX-License-Identifier: Apache-2.0
"""The operator `linear_cross_entropy` over `_linear`, and how it is differentiated.

In reverse mode, to first order, the gradients come from `_linear`. All else (transforms, forward mode, gradients that
are differentiated again) goes through F.linear and `_forward`, which are differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from npu_ce_jit.op import checks
from npu_ce_jit.op.autograd.functions import OPS, record_without_derivative
from npu_ce_jit.op.operators import checked_terms
from npu_ce_jit.op.saved import require_unchanged, seen
from npu_ce_jit.op.schema import NONE, LossTerms, accumulated
from npu_ce_jit.op.torch_private import (
    apply_at_this_level,
    below_autograd,
    functorch_is_active,
    has_tangent,
    is_batched_gradient,
    is_differentiating,
    keeps_graph,
)


class _Options(NamedTuple):
    """One call's options, in the order in which `_linear` takes them."""

    terms: LossTerms
    loss_dtype: torch.dtype
    chunk_rows: int
    aspect_ratio: int


_Operands = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]
_NAMES = ("input", "linear_weight", "linear_bias", "target", "weight")
# Where forward has made the gradients.
FORWARD_HAS_THEM = '. Reduction "mean" and "sum" read nothing again in backward, but for float16 and create_graph'


def _call(operands: _Operands, options: _Options) -> Tensor:
    return _linear(operands, None, options, [False] * 3)[0]


def _linear(
    operands: _Operands, grad_loss: Tensor | None, options: _Options, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    terms, *others = options
    return OPS._linear.default(*operands, grad_loss, *terms, *others, mask)  # type: ignore[no-any-return]


def linear_cross_entropy(*arguments: Any, **options: Any) -> Tensor:
    """The loss of `input @ linear_weight.T + linear_bias`."""
    return _call(*_prepare(*arguments, **options))


def record_linear_cross_entropy(*arguments: Any) -> Tensor:
    """The Autograd kernel of `linear_cross_entropy`."""
    return _record(*_prepare(*arguments))


def batch_linear_cross_entropy(*arguments: Any) -> Tensor:
    """Its kernel under vmap, where the tensors are batches that look like one sample."""
    return _compose(*_prepare(*arguments))


def _prepare(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    loss_dtype: torch.dtype | None = None,
    chunk_rows: int = 0,
    aspect_ratio: int = 0,
) -> tuple[_Operands, _Options]:
    checks.check_linear(input, linear_weight, linear_bias, target, weight)
    terms = checked_terms(reduction, ignore_index, label_smoothing, "z_loss", z_loss, softcap, logit_scale)
    checks.check_loss_dtype(input, loss_dtype)
    checks.check_weight_has_no_gradient(weight)
    options = _Options(terms, loss_dtype or input.dtype, chunk_rows, aspect_ratio)
    return (input, linear_weight, linear_bias, target, accumulated(weight, input)), options


def _record(operands: _Operands, options: _Options) -> Tensor:
    if functorch_is_active() or has_tangent(*operands[:3]):
        return _compose(operands, options)
    if is_differentiating(*operands[:3]):
        mask = output_mask(operands[:3], options.terms)
        return apply_at_this_level(LinearCrossEntropy, *operands, options, mask)[0]  # type: ignore[no-any-return]
    return below_autograd(_call, operands, options)  # type: ignore[no-any-return]


def _compose(operands: _Operands, options: _Options) -> Tensor:
    input, linear_weight, linear_bias, target, weight = operands
    logits = F.linear(input, linear_weight, linear_bias)
    return OPS._forward.default(logits, target, weight, *options.terms, 0, options.loss_dtype)[0]  # type: ignore[no-any-return]


def record_linear(*arguments: Any) -> tuple[Tensor, ...]:
    """The Autograd kernel of `_linear`."""
    return record_without_derivative(  # type: ignore[no-any-return]
        partial(below_autograd, OPS._linear.default),
        "expected no derivative of npu_ce_jit::_linear, got a request for one; "
        "call npu_ce_jit.linear_cross_entropy, which is differentiable to any order",
        *arguments,
    )


class LinearCrossEntropy(torch.autograd.Function):
    """Profilers and `grad_fn` show this name."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *operands, options, mask = arguments
        return below_autograd(_linear, operands, None, options, mask)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *operands, ctx.options, mask = inputs
        _, *gradients = output
        ctx.has_gradients, ctx.seen = any(mask), seen(*operands)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*gradients)
        ctx.save_for_backward(*operands, *gradients)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        grad_loss = grad_outputs[0]
        nothing = (None,) * 7
        if grad_loss is None:
            return nothing
        saved = ctx.saved_tensors  # read once: a checkpoint computes them anew each time
        operands, gradients = saved[:5], saved[5:]
        wanted = list(ctx.needs_input_grad[:3])
        is_recorded = is_differentiating(grad_loss, *operands[:3])
        if is_recorded or not ctx.has_gradients:
            require_unchanged(ctx.seen, _NAMES, operands, FORWARD_HAS_THEM)
        if is_recorded:
            gradients = _differentiable_gradients(operands, ctx.options, grad_loss, wanted)
        elif not ctx.has_gradients:
            _, *gradients = below_autograd(_linear, operands, grad_loss, ctx.options, wanted)
        else:
            gradients = scaled(gradients, grad_loss, wanted)
        return (*(g if asked else None for g, asked in zip(gradients, wanted, strict=True)), *nothing[3:])


def output_mask(layer: Sequence[Tensor | None], terms: LossTerms) -> list[bool]:
    """The gradients that forward makes, to be multiplied by the loss's gradient: all that are needed, or none.

    Not for reduction "none", where each row has its own factor. Not in float16, where a loss is scaled because its
    gradients would vanish unscaled: backward makes those from the logits again.
    """
    if terms.reduction == NONE or any(tensor is not None and tensor.dtype is torch.float16 for tensor in layer):
        return [False] * 3
    return [tensor is not None and tensor.requires_grad for tensor in layer]


def scaled(gradients: Sequence[Tensor], grad_loss: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    """The gradients that forward has made for a loss gradient of 1."""
    if torch.compiler.is_compiling() or keeps_graph() or is_batched_gradient(grad_loss):
        return [g * grad_loss if asked else None for g, asked in zip(gradients, wanted, strict=True)]
    # Nobody reads them again, and a second copy would be as large as linear_weight.
    return [g.mul_(grad_loss) if asked else None for g, asked in zip(gradients, wanted, strict=True)]


def _differentiable_gradients(
    operands: _Operands, options: _Options, grad_loss: Tensor, wanted: list[bool]
) -> list[Tensor | None]:
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        loss = _compose(operands, options)
        inputs = [tensor for tensor, asked in zip(operands, wanted, strict=False) if asked and tensor is not None]
        gradients = iter(torch.autograd.grad(loss, inputs, grad_loss, create_graph=is_recorded))
    return [next(gradients) if asked else None for asked in wanted]
