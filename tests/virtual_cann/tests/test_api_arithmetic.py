# SPDX-License-Identifier: Apache-2.0
"""The virtual Ascend C computes what its manual says: arithmetic and logic, compared with torch, at awkward sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from api_kernels import DTYPES, SIZES, Launch, launcher_of, numbers
from torch import Tensor


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return launcher_of("api_arithmetic", tmp_path_factory.mktemp("api"))


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Exp": torch.exp,
    "Ln": torch.log,
    "Abs": torch.abs,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Rsqrt": torch.rsqrt,
    "Relu": torch.relu,
    "Not": torch.bitwise_not,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "And": torch.bitwise_and,
    "Or": torch.bitwise_or,
}
SCALAR: dict[str, Callable[[Tensor], Tensor]] = {
    "Adds": lambda x: x + 3,
    "Muls": lambda x: x * 3,
    "Maxs": lambda x: x.clamp(min=3),
    "Mins": lambda x: x.clamp(max=3),
    "ShiftLeft": lambda x: x << 3,
    "ShiftRight": lambda x: x >> 3,
}
ARITHMETIC = [
    "Exp_float", "Exp_half", "Ln_float", "Ln_half", "Abs_float", "Abs_half", "Sqrt_float", "Reciprocal_half",
    "Rsqrt_float", "Relu_int32_t", "Not_int16_t", "Add_float", "Add_half", "Add_int32_t", "Add_int16_t", "Sub_half",
    "Sub_int32_t", "Mul_float", "Mul_half", "Mul_int32_t", "Div_float", "Div_half", "Max_float", "Min_half",
    "Max_int16_t", "And_int16_t", "Or_uint16_t", "Adds_float", "Adds_half", "Muls_half", "Muls_int32_t", "Maxs_float",
    "Mins_half", "ShiftLeft_int32_t", "ShiftRight_int16_t",
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", ARITHMETIC)
def test_arithmetic(kernel: str, size: int, run: Launch) -> None:
    name, _, type_name = kernel.partition("_")
    dtype = DTYPES[type_name]
    needs_positive = name in ("Ln", "Sqrt", "Rsqrt", "Reciprocal")
    a = numbers(dtype, size, low=0.1 if needs_positive else -10, high=10)
    b = numbers(dtype, size)
    result = run(kernel, a, b, torch.empty_like(a), size)
    wide = (lambda t: t.double()) if dtype.is_floating_point else (lambda t: t)
    expected = BINARY[name](wide(a), wide(b)) if name in BINARY else (UNARY | SCALAR)[name](wide(a))
    if name in ("Exp", "Ln", "Rsqrt"):
        torch.testing.assert_close(
            result.double(),
            expected,
            rtol=2 * torch.finfo(dtype).eps,
            atol=1e-3 if name == "Ln" and dtype == torch.float16 else 1e-7,
        )
    else:
        assert torch.equal(result, expected.to(dtype))


@pytest.mark.parametrize("size", SIZES)
def test_shifts_of_signed_numbers_keep_the_sign(size: int, run: Launch) -> None:
    a = torch.randint(-(2**31), 2**31 - 1, (size,), dtype=torch.int32)
    shifted = (a.long() << 28) & 0x7FFFFFFF
    signed = run("ShiftLeftBy28_int32_t", a, a, torch.empty_like(a), size)
    assert torch.equal(signed.long(), torch.where(a < 0, shifted - 2**31, shifted))
    assert torch.equal(run("ShiftLeftBy28_uint32_t", a, a, torch.empty_like(a), size), a << 28)
    assert torch.equal(run("ShiftRightBy32_int32_t", a, a, torch.empty_like(a), size), (a < 0).int().neg())
