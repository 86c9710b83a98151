# SPDX-License-Identifier: Apache-2.0
"""The public function `linear_cross_entropy`: brings a caller's arguments into the operator's form, and calls it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npu_ce_jit.api.cross_entropy import HALVES, OPS, CrossEntropyOutput, cross_entropy
from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.op.checks import require_tensor
from npu_ce_jit.op.layer_checks import check_layer
from npu_ce_jit.torch_compat import LinearCrossEntropyOptions, is_autocast


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
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
    options: LinearCrossEntropyOptions | None = None,
) -> Tensor | CrossEntropyOutput:
    """`cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)` without the `[N, C]` logits.

    The logits are made a chunk of rows at a time, at most a quarter of their bytes where they are large. On a CPU,
    rows that are ignored take part in no matrix product, unless their lse, argmax or entropy is asked for; an NPU
    multiplies them too, and the host waits for nothing. For "mean" and "sum", forward makes the gradients of the loss
    that are needed, and backward scales them; for "none", in float16, and where what is returned beside the loss has a
    gradient too, backward makes the logits again. Gradients of gradients, forward AD and torch.func transforms are
    exact too, but make the whole logits.

    Every sum is accumulated in float32 (float64 for float64 inputs) but one: the gradient of linear_weight is added up
    over the few chunks in its own dtype.

    Args:
        input: `[..., in_features]`, any number of leading dimensions, as F.linear takes it; float16, bfloat16, float32
            (and float64 on CPU).
        linear_weight: `[C, in_features]`, of the input's dtype, unless autocast casts both. Or `[C, d1, ...,
            in_features]` for a loss of each position, with input `[N, in_features]`: that makes the whole logits.
        target: class indices `[...]` (or `[N, d1, ...]`), int64 or int32; class probabilities in the logits' shape fall
            back to `torch.nn.functional.cross_entropy`.
        linear_bias: linear_weight's shape without its last dimension.
        weight: `[C]`, the classes' weights in the loss; float32 or the input's dtype.
        reduction, label_smoothing, z_loss, softcap, logit_scale, loss_dtype: as for `npu_ce_jit.cross_entropy`.
        return_z_loss, return_lse, return_argmax, return_entropy: as there; all but argmax are differentiable.
        ignore_index: as there; None means -100.
        skip_ignored: rows that are ignored have lse and entropy 0, without a gradient, and argmax -1, and on a CPU take
            part in no product.
        options: `npu_ce_jit.LinearCrossEntropyOptions`, which is torch.nn's where torch has it (2.13). Its
            batch_chunk_size and chunking_method say how many rows there are in a chunk ("auto" is "aspect_ratio:2";
            with neither, as without options). acc_policy, acc_dtype and allow_retain_graph change nothing: sums are as
            said above, and a graph can always be retained.

    Returns:
        The loss: 0-d for mean and sum, in the target's shape for none. With any `return_*`, a `CrossEntropyOutput`, its
        lse, argmax and entropy in the target's shape.

    Raises:
        TypeError: input, linear_weight or target is no Tensor.
        NotImplementedError: input is not of a supported floating dtype.
        ValueError: batch sizes differ, or an unknown reduction.
        IndexError: on CPU, a target out of range. On NPU that row's loss and gradients are NaN.
        RuntimeError: everything else: ranks, C = 0, devices, dtypes, sizes, options out of range, weight.requires_grad.

    Source: torch.nn.functional.linear_cross_entropy of torch 2.13; z-loss and softcap as in `npu_ce_jit.cross_entropy`.
    """
    for name, value in (("input", input), ("linear_weight", linear_weight), ("target", target)):
        require_tensor(name, value)
    chunk_rows, aspect_ratio = _chunking(options)
    ignore_index, label_smoothing, z_loss, softcap, logit_scale, chunk_rows, aspect_ratio = plain_numbers(
        ignore_index=-100 if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
        chunk_rows=chunk_rows,
        aspect_ratio=aspect_ratio,
    )
    requests: dict[str, Any] = {
        "return_z_loss": return_z_loss,
        "return_lse": return_lse,
        "return_argmax": return_argmax,
        "return_entropy": return_entropy,
    }
    terms: dict[str, Any] = {
        "reduction": reduction,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
        "logit_scale": logit_scale,
    }
    probabilities = target.is_floating_point() and target.shape == (*input.shape[:-1], *linear_weight.shape[:-1])
    if probabilities or linear_weight.dim() > 2:
        logits = _logits(input, linear_weight, linear_bias)
        if input.dim() > 2:
            logits, target = (t.flatten(0, -2) for t in (logits, target))
        return cross_entropy(logits, target, weight, loss_dtype=loss_dtype, **terms, **requests)
    found = call_operator(
        input, linear_weight, target, linear_bias, weight, loss_dtype,
        **terms, **requests, skip_ignored=skip_ignored, chunk_rows=chunk_rows, aspect_ratio=aspect_ratio,
    )  # fmt: skip
    return found if any(requests.values()) else found.loss


def call_operator(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    loss_dtype: torch.dtype | None,
    **options: Any,
) -> CrossEntropyOutput:
    """The operator on `[..., in_features]`, its results in the target's shape; None for what was not asked for."""
    if is_autocast(input.device.type):
        # As torch: F.linear in autocast's dtype, the loss in float32.
        input, linear_weight, linear_bias = autocast_layer(input, linear_weight, linear_bias)
        if loss_dtype is None and input.dtype in HALVES:
            loss_dtype = torch.float32
        weight = None if weight is None else _autocast(weight, torch.float32)
    rows, classes = flat_rows(input, target)
    loss, *others = OPS.linear_cross_entropy.default(
        rows, linear_weight, classes, linear_bias, weight, loss_dtype=loss_dtype, **options
    )
    asked = [options[f"return_{name}"] for name in CrossEntropyOutput._fields[1:]]
    found = [loss, *(values if is_asked else None for values, is_asked in zip(others, asked, strict=True))]
    if classes is not target:
        first, shape = 0 if options["reduction"] == "none" else 2, target.shape
        found[first:] = [None if values is None else values.reshape(shape) for values in found[first:]]
    return CrossEntropyOutput(*found)


def flat_rows(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, in_features]` and `[N]`. Tensors of that shape are not viewed: a view would hide a `.data =` from `seen`."""
    if input.dim() in (0, 2):
        return input, target
    if target.shape != input.shape[:-1]:
        of = "[in_features]" if input.dim() == 1 else str(list(input.shape))
        raise RuntimeError(
            f"expected target of shape {list(input.shape[:-1])} for input of shape {of}, got {list(target.shape)}"
        )
    return input.reshape(target.numel(), input.shape[-1]), target.reshape(-1)


def _logits(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    """The whole logits, `[..., C]` or `[N, C, d1, ...]`."""
    check_layer(input, linear_weight, linear_bias)
    if linear_weight.dim() > 2 and input.dim() != 2:
        raise RuntimeError(
            f"expected input of shape [N, in_features] for linear_weight {list(linear_weight.shape)}, "
            f"got {list(input.shape)}"
        )
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = F.linear(input, linear_weight.flatten(0, -2), bias)
    return logits.reshape(*input.shape[:-1], *linear_weight.shape[:-1])


def _chunking(options: LinearCrossEntropyOptions | None) -> tuple[int, int]:
    """The operator's chunk_rows and aspect_ratio, 0 where the other one or the operator decides."""
    if options is None:
        return 0, 0
    if not isinstance(options, LinearCrossEntropyOptions):
        raise TypeError(
            f"expected options to be a torch.nn.LinearCrossEntropyOptions or None, got {type(options).__name__}"
        )
    if options.batch_chunk_size is not None:
        return options.batch_chunk_size, 0
    if options.chunking_method is None:
        return 0, 0
    method = "aspect_ratio:2" if options.chunking_method == "auto" else options.chunking_method
    return 0, int(method.partition(":")[2] or 1)


def autocast_layer(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The layer in the dtype in which F.linear would run; for a device whose autocast is on."""
    dtype = torch.get_autocast_dtype(input.device.type)
    bias = None if linear_bias is None else _autocast(linear_bias, dtype)
    return _autocast(input, dtype), _autocast(linear_weight, dtype), bias


def _autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts all floating dtypes but float64, as torch's autocast does."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype is not torch.float64 else tensor
