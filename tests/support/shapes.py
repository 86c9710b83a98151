# SPDX-License-Identifier: Apache-2.0
"""Named shapes with sizes that divide nothing, and typical logits and targets."""

from __future__ import annotations

import torch
from torch import Tensor

# (N, C): one class, one row, primes, one more than a vector, than a block of 2048 and its double, few long rows.
SHAPES = [
    (1, 1),
    (3, 1),
    (1, 2),
    (5, 7),
    (4, 8),
    (7, 17),
    (13, 64),
    (17, 65),
    (6, 127),
    (3, 2049),
    (2, 4097),
    (2, 33333),
]
ON_NPU = hasattr(torch, "npu") and torch.npu.is_available()  # whether the fixture `device` is one
DTYPES = [torch.float32, torch.bfloat16, torch.float16, *([] if ON_NPU else [torch.float64])]


def logits(rows: int, classes: int, dtype: torch.dtype, scale: float = 3.0) -> Tensor:
    return (torch.randn(rows, classes, dtype=torch.float64) * scale).to(dtype)


def targets(rows: int, classes: int, ignored: float = 0.0, ignore_index: int = -100) -> Tensor:
    """Random targets, among them the first class, the last class, and a share `ignored` of ignored rows."""
    target = torch.randint(classes, (rows,))
    if rows > 1:
        target[0], target[-1] = classes - 1, 0
    target[torch.rand(rows) < ignored] = ignore_index
    return target
