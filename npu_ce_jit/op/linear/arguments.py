# SPDX-License-Identifier: Apache-2.0
"""Checks of the functions that compare two models, or read some classes, from hidden states; not of their layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from npu_ce_jit.op.checks import require_tensor
from npu_ce_jit.op.torch_private import functorch_is_active, has_tangent


def check_positive(**numbers: float | None) -> None:
    """Each is finite and above 0; a softcap may be None."""
    for name, number in numbers.items():
        if number is None and name.endswith("softcap"):
            continue
        if number is None or not 0.0 < number < math.inf:
            or_none = ", or None" if name.endswith("softcap") else ""
            raise RuntimeError(f"expected {name} finite and above 0{or_none}, got {number}")


def check_beta(beta: float) -> None:
    if not 0.0 <= beta <= 1.0:
        raise RuntimeError(f"expected beta between 0.0 and 1.0, got {beta}")


def check_k(k: int, classes: int) -> None:
    if not 1 <= k <= classes:
        raise RuntimeError(f"expected k between 1 and linear_weight's number of classes ({classes}), got {k}")


def check_mask(mask: Tensor | None, input: Tensor) -> None:
    if mask is None:
        return
    require_tensor("mask", mask)
    if mask.device != input.device:
        raise RuntimeError(f"expected mask on input's device {input.device}, got {mask.device}")
    if mask.dtype is not torch.bool or mask.shape != input.shape[:-1]:
        raise RuntimeError(
            f"expected mask of dtype bool and shape {list(input.shape[:-1])}, input's without in_features, got "
            f"{mask.dtype} and {list(mask.shape)}".replace("torch.", "")
        )


def check_teacher(student: Tensor, teacher: Tensor, student_weight: Tensor, teacher_weight: Tensor) -> None:
    """Both models must have the same rows and classes; hidden sizes and dtypes may differ."""
    if teacher.device != student.device:
        raise RuntimeError(f"expected teacher_input on input's device {student.device}, got {teacher.device}")
    if teacher.shape[:-1] != student.shape[:-1]:
        raise ValueError(
            f"expected teacher_input of shape {[*student.shape[:-1], 'in_features']}, as many rows as input, "
            f"got {list(teacher.shape)}".replace("'", "")
        )
    if teacher_weight.shape[0] != student_weight.shape[0]:
        raise RuntimeError(
            f"expected teacher_linear_weight with linear_weight's {student_weight.shape[0]} classes, "
            f"got {teacher_weight.shape[0]}; pass the rows of the classes that both models have"
        )


def check_indices(indices: Tensor, input: Tensor) -> None:
    require_tensor("indices", indices)
    if indices.device != input.device:
        raise RuntimeError(f"expected indices on input's device {input.device}, got {indices.device}")
    if indices.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"expected indices of dtype int64 or int32, got {indices.dtype}".replace("torch.", ""))
    if indices.dim() != input.dim() or indices.shape[:-1] != input.shape[:-1]:
        raise RuntimeError(
            f"expected indices of shape {[*input.shape[:-1], 'k']}, got {list(indices.shape)}".replace("'", "")
        )


def require_indices_in_range(indices: Tensor, classes: int) -> None:
    """IndexError for an index that is no class. Reads the data: on a CPU only."""
    wrong = (indices < 0) | (indices >= classes)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise IndexError(
            f"indices[{row}, {column}] = {int(indices[row, column])} is out of bounds for {classes} classes: "
            f"expected 0 <= index < {classes}"
        )


def require_reverse_mode(name: str, *tensors: Tensor | None) -> None:
    """NotImplementedError under a transform and in forward mode, where a derivative would be dropped silently."""
    if functorch_is_active() or has_tangent(*tensors):
        raise NotImplementedError(
            f"expected {name} outside of torch.func's transforms and of forward mode, got a call inside; "
            "differentiate it by backward() or torch.autograd.grad"
        )
