# SPDX-License-Identifier: Apache-2.0
"""On a CPU, gradients of the loss from hidden states in two-byte types have little more error than one rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from npu_ce_jit import linear_cross_entropy

# Rows, features, classes, the logits' standard deviation.
CELLS = [(512, 256, 8000, 1.0), (512, 256, 8000, 8.0), (300, 61, 3001, 3.0), (33, 7, 50, 8.0)]


def relative_error(got: Tensor, true: Tensor) -> float:
    return ((got.double() - true).norm() / true.norm()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_gradients_are_as_exact_as_their_rounding(cell: tuple[int, int, int, float], dtype: torch.dtype) -> None:
    rows, features, classes, deviation = cell
    hidden, layer = torch.randn(rows, features), torch.randn(classes, features) * (deviation / features**0.5)
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (hidden, layer)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    target = torch.randint(classes, (rows,))
    true = torch.autograd.grad(F.cross_entropy(F.linear(exact[0], exact[1]), target, reduction="sum"), exact)
    got = torch.autograd.grad(linear_cross_entropy(leaves[0], leaves[1], target, reduction="sum"), leaves)
    rounded_once = [relative_error(gradient.to(dtype), gradient) for gradient in true]
    assert relative_error(got[0], true[0]) <= 1.02 * rounded_once[0]
    # The weight's gradient is rounded after each of at most eight chunks, while it grows from an eighth to the whole.
    assert relative_error(got[1], true[1]) <= 1.75 * rounded_once[1]
