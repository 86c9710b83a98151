# SPDX-License-Identifier: Apache-2.0
"""The checks of arguments, each written once: the public functions, torch.ops, Meta and the reference raise from here.

`layer_checks` has those of a linear layer, `row_checks` those of `[..., V]` logits, `linear/arguments.py` those of
distillation. Order: presence, device, dtype, batch size, the targets' dtype, rank, sizes, options, values. Only shapes,
dtypes and options are read, so that tracing runs the same checks; only the `require_*_in_range` read data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.op.schema import REDUCTIONS, accumulation_dtype

_INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TARGET_DTYPES = (torch.int64, torch.int32)


def require_tensor(name: str, value: object) -> None:
    """TypeError unless `value` is a Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {name} to be a Tensor, got {type(value).__name__}")


def check_loss(input: Tensor, target: Tensor, weight: Tensor | None, *, input_name: str = "input") -> None:
    """Checks the tensors of a loss over `[N, C]` logits (or, for the drop-in's backward, log_prob)."""
    check_kinds(input, target, weight, input_name=input_name)
    _check_shapes(input, target, weight, input_name)


def check_logits(input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """Checks the tensors of a loss over `[N, C]` logits, or over `[N, C, L]` ones and targets `[N * L]`."""
    is_planar = isinstance(input, Tensor) and input.dim() == 3
    check_kinds(input, target, weight, batch_size=input.shape[0] * input.shape[2] if is_planar else None)
    if is_planar:
        _check_classes(input, target, weight, "input")
    else:
        _check_shapes(input, target, weight, "input")


def check_kinds(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *,
    input_name: str = "input",
    batch_size: int | None = None,
    **layer: Tensor | None,
) -> None:
    """Presence, devices, dtypes, batch size, for inputs of any rank; `layer` are tensors of the input's dtype.

    `batch_size` None stands for the input's first dimension.
    """
    for name, tensor in {input_name: input, **layer, "target": target, "weight": weight}.items():
        is_optional = tensor is None and name not in (input_name, "target")
        if not (isinstance(tensor, Tensor) or is_optional):
            require_tensor(name, tensor)
    check_device(input_name, input, **layer, target=target, weight=weight)
    check_dtypes(input_name, input, layer)
    if input.dim() >= 2:
        _check_batch_size(input.shape[0] if batch_size is None else batch_size, target)
    if target.dtype not in _TARGET_DTYPES:
        raise RuntimeError(f"expected target of dtype int64 or int32, got {_name(target.dtype)}")
    if weight is not None and weight.dtype not in (input.dtype, torch.float32):
        raise RuntimeError(
            f"expected weight of dtype float32 or {input_name}'s {_name(input.dtype)}, got {_name(weight.dtype)}"
        )


def check_dtypes(input_name: str, input: Tensor, layer: Mapping[str, Tensor | None]) -> None:
    if input.dtype not in _INPUT_DTYPES or (input.dtype is torch.float64 and input.device.type == "npu"):
        raise NotImplementedError(
            f"expected {input_name} of dtype float32, bfloat16, float16, or float64 except on npu, "
            f"got {_name(input.dtype)} on {input.device.type}"
        )
    for name, tensor in layer.items():
        if tensor is not None and tensor.dtype != input.dtype:
            raise RuntimeError(
                f"expected {name} of {input_name}'s dtype {_name(input.dtype)}, got {_name(tensor.dtype)}"
            )


def _check_shapes(input: Tensor, target: Tensor, weight: Tensor | None, input_name: str) -> None:
    if input.dim() != 2:
        raise RuntimeError(f"expected {input_name} of shape [N, C], got {shape_of(input)}")
    _check_classes(input, target, weight, input_name)


def _check_classes(input: Tensor, target: Tensor, weight: Tensor | None, input_name: str) -> None:
    check_row_ranks(target, weight)
    classes = input.shape[1]
    check_has_classes(input_name, input, classes)
    if weight is not None:
        check_weight_size(weight, classes)


def check_row_ranks(target: Tensor, weight: Tensor | None) -> None:
    if target.dim() != 1:
        raise RuntimeError(f"expected target of shape [N], got {shape_of(target)}")
    if weight is not None and weight.dim() != 1:
        raise RuntimeError(f"expected weight of shape [C], got {shape_of(weight)}")


def check_has_classes(name: str, tensor: Tensor, classes: int) -> None:
    require_that(
        classes >= 1, RuntimeError, lambda: f"expected {name} with at least one class, got shape {shape_of(tensor)}"
    )


def check_weight_size(weight: Tensor, classes: int) -> None:
    require_that(
        weight.shape[0] == classes,
        RuntimeError,
        lambda: f"expected weight of shape [{classes}], one for each class, got {shape_of(weight)}",
    )


def _check_batch_size(rows: int, target: Tensor) -> None:
    found = target.shape[0] if target.dim() else 0
    require_that(
        rows == found,
        ValueError,
        lambda: f"expected input batch_size ({rows}) to match target batch_size ({found})",
    )


def check_terms(reduction: str, label_smoothing: float, scales: dict[str, float], softcap: float | None = None) -> None:
    """Checks the options of a loss; `scales` are factors by name that must be finite and not negative."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"expected reduction 'none', 'mean' or 'sum', got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"expected label_smoothing between 0.0 and 1.0, got {label_smoothing}")
    for name, scale in scales.items():
        if not 0.0 <= scale < math.inf:
            raise RuntimeError(f"expected {name} finite and not negative, got {scale}")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise RuntimeError(f"expected softcap finite and above 0, or None, got {softcap}")


def check_weight_has_no_gradient(weight: Tensor | None) -> None:
    """Raises, as torch does: the loss is not differentiable with respect to the class weights."""
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "expected weight without requires_grad, got requires_grad=True: the loss is not differentiable with "
            "respect to weight; pass weight.detach()"
        )


def check_loss_dtype(input: Tensor, loss_dtype: torch.dtype | None) -> None:
    """The loss is rounded once, to the input's dtype or to the dtype in which it was accumulated."""
    if loss_dtype is not None and loss_dtype not in (input.dtype, accumulation_dtype(input.dtype)):
        allowed = dict.fromkeys(("None", _name(input.dtype), _name(accumulation_dtype(input.dtype))))
        raise RuntimeError(f"expected loss_dtype {' or '.join(allowed)}, got {_name(loss_dtype)}")


def check_inplace_backward(input: Tensor) -> None:
    """The gradient is written over the logits, so they must be laid out as the gradient is."""
    if input.dim() != 2 or not input.is_contiguous():
        raise RuntimeError(
            f"expected a contiguous input of shape [N, C] for inplace_backward=True, got shape {shape_of(input)} with "
            f"strides {list(input.stride())}; pass input.contiguous() or inplace_backward=False"
        )


def check_backward(
    grad_loss: Tensor,
    log_prob: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grad_zloss: Tensor | None,
    lse_for_zloss: Tensor | None,
    reduction: str,
    label_smoothing: float,
    lse_square_scale_for_zloss: float,
) -> None:
    """Checks a call of `npu_cross_entropy_loss_backward`."""
    require_tensor("grad_loss", grad_loss)
    check_loss(log_prob, target, weight, input_name="log_prob")
    gradients = {"grad_loss": grad_loss, "grad_zloss": grad_zloss}
    check_device("log_prob", log_prob, **gradients, lse_for_zloss=lse_for_zloss)
    for name, tensor in {**gradients, "lse_for_zloss": lse_for_zloss}.items():
        if tensor is not None and tensor.dtype not in _INPUT_DTYPES:
            raise RuntimeError(f"expected {name} of a floating dtype, got {_name(tensor.dtype)}")
    check_terms(reduction, label_smoothing, {"lse_square_scale_for_zloss": lse_square_scale_for_zloss})
    rows = log_prob.shape[0]
    for name, tensor in gradients.items():
        if tensor is not None:
            _check_gradient(name, tensor, reduction, rows)
    if lse_square_scale_for_zloss != 0.0:
        if lse_for_zloss is None:
            raise RuntimeError(
                f"expected lse_for_zloss of shape [{rows}] with lse_square_scale_for_zloss="
                f"{lse_square_scale_for_zloss}, got None"
            )
        require_that(
            lse_for_zloss.dim() == 1 and lse_for_zloss.shape[0] == rows,
            RuntimeError,
            lambda: f"expected lse_for_zloss of shape [{rows}], got {shape_of(lse_for_zloss)}",
        )


def require_targets_in_range(target: Tensor, classes: int, ignore_index: int) -> None:
    """IndexError for a target outside [0, classes) that is not ignored. Reads the data: CPU kernels only."""
    wrong = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bool(wrong.any()):
        row = tuple(wrong.nonzero()[0].tolist())
        raise IndexError(
            f"target{list(row)} = {int(target[row])} is out of bounds for {classes} classes: "
            f"expected 0 <= target < {classes} or ignore_index ({ignore_index})"
        )


def require_that(condition: bool | torch.SymBool, error: type[Exception], message: Callable[[], str]) -> None:
    """Raises unless `condition`, on sizes that may be symbolic, holds. A plain True skips torch's check, of 3 us."""
    if torch.compiler.is_dynamo_compiling():  # torch's check takes no message there that is made from a tensor
        if not condition:
            raise error(message())
    elif condition is not True:
        torch._check_with(error, condition, message)


def check_device(input_name: str, input: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(f"expected {name} on {input_name}'s device {input.device}, got {tensor.device}")


def _check_gradient(name: str, gradient: Tensor, reduction: str, rows: int) -> None:
    if reduction == "none":
        fits, expected = gradient.dim() == 1 and gradient.shape[0] == rows, f"[{rows}]"
    else:
        fits, expected = gradient.dim() <= 1 and gradient.numel() == 1, "[1] or []"
    require_that(
        fits,
        RuntimeError,
        lambda: f"expected {name} of shape {expected} for reduction {reduction!r}, got {shape_of(gradient)}",
    )


def shape_of(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
