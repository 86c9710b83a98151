# SPDX-License-Identifier: Apache-2.0
"""Calls each form of the loss once, and describes its tensors. As a program, does so on a fake npu."""

from __future__ import annotations

import itertools
import json
import sys

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import npu_ce_jit

OPS = torch.ops.npu_ce_jit


def forward_and_backward(device: str, dtype: torch.dtype, reduction: str, asked: bool) -> dict[str, list[Tensor]]:
    """Every output and gradient of each form; with `asked`, all optional outputs too."""

    def leaf(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)

    x, hidden, linear_weight, linear_bias = leaf(6, 5), leaf(6, 3), leaf(5, 3), leaf(5)
    target = torch.zeros(6, dtype=torch.int64, device=device)
    scale = 0.1 if asked else 0.0
    layer = (hidden, linear_weight, target, linear_bias)
    calls = {
        "cross_entropy": ((x,), OPS.cross_entropy, (x, target, None, reduction, -100, 0.0, scale, asked), (asked,) * 3),
        "drop-in": ((x,), OPS.npu_cross_entropy_loss, (x, target, None, reduction, -100, 0.0, scale, asked), ()),
        "linear": (
            (hidden, linear_weight, linear_bias),
            OPS.linear_cross_entropy,
            (*layer, None, reduction, -100, 0.0, scale, asked),
            (asked,) * 3,
        ),
    }
    tensors = {}
    for name, (leaves, operator, arguments, returns) in calls.items():
        outputs = operator(*arguments, *((None, 1.0, *returns) if returns else ()))
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        tensors[name] = [*outputs, *torch.autograd.grad(outputs[0].sum(), leaves)]
    return tensors


def looks(tensors: dict[str, list[Tensor]]) -> dict[str, list[list[object]]]:
    """Shape, strides, dtype, device and requires_grad of each tensor, in types that JSON keeps."""
    return {
        name: [[list(t.shape), list(t.stride()), str(t.dtype), str(t.device), t.requires_grad] for t in of_form]
        for name, of_form in tensors.items()
    }


# (dtype, reduction, asked)
CASES = list(itertools.product(("float32", "bfloat16", "float16"), ("none", "mean"), (False, True)))


def main() -> None:
    npu_ce_jit.register_fake_npu()
    with FakeTensorMode():
        found = [looks(forward_and_backward("npu", getattr(torch, dtype), *options)) for dtype, *options in CASES]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
