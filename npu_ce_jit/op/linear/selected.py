# SPDX-License-Identifier: Apache-2.0
"""`_linear_topk` and `_linear_selected`: log-probabilities of a few classes a row, from hidden states.

For each chunk of rows, the logits are made and read by `_forward`. `_linear_selected` makes them again in backward.
Each is a torch.library.custom_op, opaque to a tracer, as `_linear_divergence` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.op.autograd.functions import no_second_derivative
from npu_ce_jit.op.linear.arguments import require_indices_in_range
from npu_ce_jit.op.linear.layer import Layer, fake_gradients
from npu_ce_jit.op.rows import transformed
from npu_ce_jit.op.saved import require_storage, require_unchanged, seen
from npu_ce_jit.op.schema import NAMESPACE, accumulation_dtype
from npu_ce_jit.op.torch_private import is_differentiating

_LAYER = "Tensor input, Tensor linear_weight, Tensor? linear_bias"
_OPTIONS = "float temperature, float? softcap"
_NAMES = ("input", "linear_weight", "linear_bias", "indices")


def topk(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, k: int, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """`[N, k]`: the greatest log-probabilities in falling order, and their classes."""
    require_storage(_NAMES[:3], (input, linear_weight, linear_bias))
    layer = Layer((input, linear_weight, linear_bias), temperature, softcap)
    logprobs = input.new_empty((len(input), k), dtype=layer.dtype)
    classes = input.new_empty((len(input), k), dtype=torch.int64)
    for chunk in layer.chunks():
        logits = layer.logits(chunk)
        row_stats = layer.forward(logits, 0)[6]
        greatest, classes[chunk] = logits.topk(k)
        logprobs[chunk] = _logprobs(greatest, layer, row_stats)
    return logprobs, classes


def selected(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    indices: Tensor,
    gradient: Tensor | None,
    temperature: float,
    softcap: float | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities `[N, k]`, and the gradients that `output_mask` asks for; `gradient` is the former's."""
    require_storage(_NAMES, (input, linear_weight, linear_bias, indices))
    layer = Layer((input, linear_weight, linear_bias), temperature, softcap, None, output_mask)
    classes = len(linear_weight)
    if indices.device.type == "cpu":
        require_indices_in_range(indices, classes)
    # Out of range, an index reads class 0 and gives NaN: no manual page says that an NPU checks the bounds of a gather.
    in_range = (indices >= 0) & (indices < classes)
    indices = torch.where(in_range, indices, 0).long()
    logprobs = input.new_empty(indices.shape, dtype=layer.dtype)
    for chunk in layer.chunks():
        logits = layer.logits(chunk)
        row_stats = layer.forward(logits, 0)[6]
        of_classes = logits.gather(1, indices[chunk])
        logprobs[chunk] = torch.where(in_range[chunk], _logprobs(of_classes, layer, row_stats), torch.nan)
        if gradient is not None:
            of_logprobs = torch.where(in_range[chunk], gradient[chunk].to(layer.dtype), torch.nan)
            layer.backward_(logits, row_stats, log_prob=None, lse=-of_logprobs.sum(1))
            logits.scatter_add_(1, indices[chunk], of_logprobs * transformed(of_classes, layer.terms).slope)
            layer.add_gradients(chunk, logits)
    return logprobs, *layer.gradients()  # type: ignore[return-value]


def _logprobs(logits: Tensor, layer: Layer, row_stats: Tensor) -> Tensor:
    greatest, log_sum = row_stats[..., None]
    logprobs: Tensor = (transformed(logits, layer.terms).x - greatest) - log_sum
    return logprobs


linear_topk = torch.library.custom_op(
    f"{NAMESPACE}::_linear_topk",
    topk,
    mutates_args=(),
    schema=f"({_LAYER}, int k, {_OPTIONS}) -> (Tensor logprobs, Tensor indices)",
)
linear_selected = torch.library.custom_op(
    f"{NAMESPACE}::_linear_selected",
    selected,
    mutates_args=(),
    schema=(
        f"({_LAYER}, Tensor indices, Tensor? gradient, {_OPTIONS}, bool[3] output_mask) "
        "-> (Tensor logprobs, Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias)"
    ),
)


@linear_topk.register_fake
def _(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, k: int, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (input.shape[0], k)
    dtype = accumulation_dtype(input.dtype)
    return input.new_empty(shape, dtype=dtype), input.new_empty(shape, dtype=torch.int64)


@linear_selected.register_fake
def _(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, indices: Tensor, *others: Any) -> Any:
    logprobs = input.new_empty(indices.shape, dtype=accumulation_dtype(input.dtype))
    return logprobs, *fake_gradients(input, linear_weight, others[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, _, ctx.temperature, ctx.softcap, _ = inputs
    ctx.seen = seen(*operands)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*operands)


def _backward(ctx: Any, gradient: Tensor | None, *_: Any) -> Any:
    if gradient is None:
        return (None,) * 8
    operands = ctx.saved_tensors
    if is_differentiating(gradient, *operands[:3]):
        raise no_second_derivative("linear_selected_logprobs", "F.linear and log_softmax are")
    require_unchanged(ctx.seen, _NAMES, operands)
    wanted = list(ctx.needs_input_grad[:3])
    _, *gradients = linear_selected(*operands, gradient, ctx.temperature, ctx.softcap, wanted)
    return (*(g if asked else None for g, asked in zip(gradients, wanted, strict=True)), *(None,) * 5)


linear_selected.register_autograd(_backward, setup_context=_setup_context)
