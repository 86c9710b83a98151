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
from npu_ce_jit.op.autograd.functions import OPS, no_second_derivative, record_without_derivative
from npu_ce_jit.op.layer_checks import check_linear
from npu_ce_jit.op.linear.chunks import without_ignored
from npu_ce_jit.op.operators import checked_terms
from npu_ce_jit.op.saved import require_unchanged, seen
from npu_ce_jit.op.schema import (
    ARGMAX,
    ENTROPY,
    LSE,
    NONE,
    SKIP_IGNORED,
    Z_LOSS,
    LinearOutputs,
    LossTerms,
    accumulated,
)
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
    """One call's options, in the order in which `_linear` takes them after the terms."""

    terms: LossTerms
    outputs: int
    loss_dtype: torch.dtype
    chunk_rows: int
    aspect_ratio: int
    group: str | None


_Operands = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]
# The gradients of loss, z_loss, lse and entropy.
_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
# (loss, z_loss, lse, argmax, entropy), with shape [0] for what was not asked.
Losses = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
_NAMES = ("input", "linear_weight", "linear_bias", "target", "weight")
_NAMES_OVER_RANKS = ("input", "local_linear_weight", "local_linear_bias", "target", "weight")
# Advice for errors about changed tensors: which calls do not read them in backward.
FORWARD_HAS_THEM = (
    '. Reduction "mean" and "sum" read nothing again in backward, but for float16, create_graph, and gradients of what '
    "is returned beside the loss"
)


def _linear(operands: _Operands, gradients: _Gradients, options: _Options, mask: list[bool]) -> LinearOutputs:
    terms, *others = options
    return OPS._linear.default(*operands, *gradients, *terms, *others, mask)  # type: ignore[no-any-return]


def _call(operands: _Operands, options: _Options) -> Losses:
    return _linear(operands, (None,) * 4, options, [False] * 3)[:5]


def linear_cross_entropy(*arguments: Any, **options: Any) -> Losses:
    """The losses of `input @ linear_weight.T + linear_bias`, and the outputs of each row that are asked for."""
    return _call(*_prepare(*arguments, **options))


def record_linear_cross_entropy(*arguments: Any) -> Losses:
    """The Autograd kernel of `linear_cross_entropy`."""
    return _record(*_prepare(*arguments))


def batch_linear_cross_entropy(*arguments: Any) -> Losses:
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
    return_z_loss: bool = False,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_lse: bool = False,
    return_argmax: bool = False,
    return_entropy: bool = False,
    skip_ignored: bool = False,
    loss_dtype: torch.dtype | None = None,
    chunk_rows: int = 0,
    aspect_ratio: int = 0,
    group: str | None = None,
) -> tuple[_Operands, _Options]:
    # A rank may have no classes.
    check_linear(input, linear_weight, linear_bias, target, weight, may_be_empty=group is not None)
    terms = checked_terms(reduction, ignore_index, label_smoothing, "z_loss", z_loss, softcap, logit_scale)
    checks.check_loss_dtype(input, loss_dtype)
    checks.check_weight_has_no_gradient(weight)
    outputs = (
        (Z_LOSS if return_z_loss else 0)
        | (LSE if return_lse else 0)
        | (ARGMAX if return_argmax else 0)
        | (ENTROPY if return_entropy else 0)
        | (SKIP_IGNORED if skip_ignored else 0)
    )
    options = _Options(terms, outputs, loss_dtype or input.dtype, chunk_rows, aspect_ratio, group)
    return (input, linear_weight, linear_bias, target, accumulated(weight, input)), options


def _record(operands: _Operands, options: _Options) -> Losses:
    if functorch_is_active() or has_tangent(*operands[:3]):
        return _compose(operands, options)
    if is_differentiating(*operands[:3]):
        mask = _output_mask(operands[:3], options.terms)
        return apply_at_this_level(LinearCrossEntropy, *operands, options, mask)[:5]  # type: ignore[no-any-return]
    return below_autograd(_call, operands, options)  # type: ignore[no-any-return]


def _compose(operands: _Operands, options: _Options) -> Losses:
    if options.group is not None:
        raise no_second_derivative("a loss over ranks, and no transform", "npu_ce_jit.linear_cross_entropy is")
    input, linear_weight, linear_bias, target, weight = operands
    terms, outputs = options.terms, options.outputs
    logits = F.linear(input, linear_weight, linear_bias)
    loss, z_loss, _, lse, argmax, entropy, *_ = OPS._forward.default(
        logits, target, weight, *terms, outputs & ~SKIP_IGNORED, options.loss_dtype
    )
    return loss, z_loss, *without_ignored(lse, argmax, entropy, target != terms.ignore_index, outputs)


def record_linear(*arguments: Any) -> LinearOutputs:
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
    def forward(*arguments: Any) -> LinearOutputs:
        *operands, options, mask = arguments
        return below_autograd(_linear, operands, (None,) * 4, options, mask)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: LinearOutputs) -> None:
        *operands, ctx.options, mask = inputs
        _, z_loss, lse, argmax, entropy, *gradients = output
        ctx.has_gradients, ctx.seen = any(mask), seen(*operands)
        ctx.set_materialize_grads(False)
        unasked = [
            tensor
            for bit, tensor in ((Z_LOSS, z_loss), (LSE, lse), (ENTROPY, entropy))
            if not ctx.options.outputs & bit
        ]
        ctx.mark_non_differentiable(argmax, *unasked, *gradients)
        ctx.save_for_backward(*operands, *gradients)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        loss, z_loss, lse, _, entropy, *_ = grad_outputs
        gradients = (loss, z_loss, lse, entropy)
        nothing = (None,) * 7
        if all(g is None for g in gradients):
            return nothing
        saved = ctx.saved_tensors  # read once: a checkpoint computes them anew each time
        operands, of_layer = saved[:5], saved[5:]
        wanted = list(ctx.needs_input_grad[:3])
        is_recorded = is_differentiating(*gradients, *operands[:3])
        # Forward made the gradients of the loss alone, not of the other outputs.
        are_made = ctx.has_gradients and all(g is None for g in gradients[1:])
        if is_recorded or not are_made:
            names = _NAMES if ctx.options.group is None else _NAMES_OVER_RANKS
            require_unchanged(ctx.seen, names, operands, FORWARD_HAS_THEM)
        if is_recorded:
            of_layer = _differentiable_gradients(operands, ctx.options, gradients, wanted)
        elif are_made and loss is not None:
            of_layer = scaled(of_layer, loss, wanted)
        else:
            # Of the outputs only the gradients are needed: forward has returned the values.
            options = ctx.options._replace(outputs=ctx.options.outputs & SKIP_IGNORED)
            of_layer = below_autograd(_linear, operands, gradients, options, wanted)[5:]
        return (*(g if asked else None for g, asked in zip(of_layer, wanted, strict=True)), *nothing[3:])


def _output_mask(layer: Sequence[Tensor | None], terms: LossTerms) -> list[bool]:
    """The gradients that forward makes, to be multiplied by the loss's gradient: all that are needed, or none.

    None for reduction "none", where each row's loss has a gradient of its own. None in float16, where a loss is scaled
    because its gradients would underflow unscaled: backward makes the logits again, and the gradients from them.
    """
    if terms.reduction == NONE or any(tensor is not None and tensor.dtype is torch.float16 for tensor in layer):
        return [False] * 3
    return [tensor is not None and tensor.requires_grad for tensor in layer]


def scaled(gradients: Sequence[Tensor], grad_loss: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    """The gradients that forward has made for a loss gradient of 1, times `grad_loss`."""
    if torch.compiler.is_compiling() or keeps_graph() or is_batched_gradient(grad_loss):
        return [g * grad_loss if asked else None for g, asked in zip(gradients, wanted, strict=True)]
    # In place, as nothing reads them again: a second copy would be as large as linear_weight.
    return [g.mul_(grad_loss) if asked else None for g, asked in zip(gradients, wanted, strict=True)]


def _differentiable_gradients(
    operands: _Operands, options: _Options, gradients: _Gradients, wanted: list[bool]
) -> list[Tensor | None]:
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        loss, z_loss, lse, _, entropy = _compose(operands, options)
        of_losses = [
            (value, g) for value, g in zip((loss, z_loss, lse, entropy), gradients, strict=True) if g is not None
        ]
        inputs = [tensor for tensor, asked in zip(operands, wanted, strict=False) if asked and tensor is not None]
        values, directions = zip(*of_losses, strict=True)
        found = iter(torch.autograd.grad(values, inputs, directions, create_graph=is_recorded))
    return [next(found) if asked else None for asked in wanted]
