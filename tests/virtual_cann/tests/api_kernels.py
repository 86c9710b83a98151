# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels of one API each (kernels/api_*.asc), and shares code between their tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from virtual_cann import kernels

KERNELS = Path(__file__).resolve().parent / "kernels"
SIZES = [1, 7, 63, 64, 65, 127, 129, 255, 256, 1000]
DTYPES = {
    "float": torch.float32,
    "half": torch.float16,
    "bfloat16_t": torch.bfloat16,
    "int64_t": torch.int64,
    "int32_t": torch.int32,
    "int16_t": torch.int16,
    "uint16_t": torch.int16,
    "int8_t": torch.int8,
    "uint8_t": torch.uint8,
}

Launch = Callable[..., Tensor]


def launcher_of(source: str, folder: Path) -> Launch:
    """run(kernel, a, b, result, n) launches a kernel, asserts that it breaks no rule, and returns the result."""
    library = kernels.compile_kernels(KERNELS / f"{source}.asc", folder / f"{source}.so")

    def run(kernel: str, a: Tensor, b: Tensor, result: Tensor, n: int) -> Tensor:
        with kernels.on_device(a) as a_gm, kernels.on_device(b) as b_gm, kernels.on_device(result) as result_gm:
            outcome = kernels.launch(library[f"launch_{kernel}"], a_gm, b_gm, result_gm, n)
        assert outcome.report["violations"] == [], outcome.message
        return result

    return run


def numbers(dtype: torch.dtype, size: int, low: float = -20, high: float = 20) -> Tensor:
    values = torch.rand(size, dtype=torch.float64) * (high - low) + low
    return values.to(dtype)
