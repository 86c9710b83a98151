# SPDX-License-Identifier: Apache-2.0
"""The virtual Ascend C computes what its manual says: Cast, compared with exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from api_kernels import DTYPES, Launch, launcher_of, numbers
from torch import Tensor

NONE, RINT, FLOOR, CEIL, ROUND, TRUNC, ODD = range(7)
ROUNDING = (RINT, FLOOR, CEIL, ROUND, TRUNC)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return launcher_of("api_cast", tmp_path_factory.mktemp("api"))


def rounded(value: Fraction, mode: int) -> int:
    floor = math.floor(value)
    cut = value - floor
    if cut == 0:
        return floor
    if mode == FLOOR:
        return floor
    if mode == CEIL:
        return floor + 1
    if mode == TRUNC:
        return floor if value > 0 else floor + 1
    if mode == ODD:
        return floor if floor % 2 else floor + 1
    if mode == ROUND:
        return floor + 1 if cut > Fraction(1, 2) or (cut == Fraction(1, 2) and value > 0) else floor
    return round(value)


FORMATS = {torch.float16: (10, -14), torch.bfloat16: (7, -126), torch.float32: (23, -126)}


def cast_value(value: float, source: torch.dtype, target: torch.dtype, mode: int) -> float | int:
    """The manual's rounding, computed with exact fractions."""
    if not target.is_floating_point:
        if value != value:
            return 0
        limits = torch.iinfo(target)
        if isinstance(value, float) and math.isinf(value):
            return limits.max if value > 0 else limits.min
        return min(max(rounded(Fraction(value), mode), limits.min), limits.max)
    if isinstance(value, float) and not math.isfinite(value):
        return value
    exact = Fraction(value)
    if exact == 0:
        return value
    if source == target:
        return math.copysign(float(rounded(exact, mode)), value)
    fraction, smallest = FORMATS[target]
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    if abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, smallest) - fraction)
    result = float(rounded(exact / unit, mode) * unit)
    largest = torch.finfo(target).max
    if abs(result) <= largest:
        return result
    # No page says it; in IEEE 754 only modes that round in that direction overflow to infinity.
    to_infinity = {FLOOR: value < 0, CEIL: value > 0, TRUNC: False, ODD: False}.get(mode, True)
    return math.copysign(math.inf if to_infinity else largest, value)


CASTS = {
    "half_float": (*ROUNDING, NONE, ODD),
    "bfloat16_t_float": ROUNDING,
    "float_half": (NONE,),
    "float_bfloat16_t": (NONE,),
    "float_float": ROUNDING,
    "int32_t_float": ROUNDING,
    "int16_t_float": ROUNDING,
    "int64_t_float": ROUNDING,
    "float_int32_t": (*ROUNDING, NONE),
    "float_int64_t": ROUNDING,
    "float_int16_t": (NONE,),
    "half_int16_t": (*ROUNDING, NONE),
    "half_uint8_t": (NONE,),
    "int8_t_half": (*ROUNDING, NONE),
    "uint8_t_half": (*ROUNDING, NONE),
    "int32_t_half": ROUNDING,
    "int32_t_bfloat16_t": ROUNDING,
    "int16_t_int32_t": (NONE,),
    "int64_t_int32_t": (NONE,),
    "int32_t_int64_t": (NONE,),
}


def cast_inputs(source: torch.dtype, size: int) -> Tensor:
    """Ties at n + 0.5 and between 16-bit floats, subnormals, infinities, NaN, and the ends of every range."""
    if source.is_floating_point:
        special = [0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, 1e-8, -6.1e-5, 3e-41, 1.0 + 2**-11, 1.0 + 3 * 2**-11, 126.5,
                   127.5, 128.5, 255.5, 256.5, 32767.5, -32768.5, 65000.0, 2.0**31, -(2.0**31), 2.0**63, math.inf,
                   -math.inf, math.nan]  # fmt: skip
        return torch.cat([torch.tensor(special, dtype=torch.float64), numbers(torch.float64, size, -3000, 3000)]).to(
            source
        )
    limits = torch.iinfo(source)
    special_integers = torch.tensor([0, 1, limits.min, limits.max, limits.max - 1, limits.max // 2 + 1])
    return torch.cat([special_integers, torch.randint(limits.min, limits.max, (size,))]).to(source)


@pytest.mark.parametrize(("types", "mode"), [(types, mode) for types, modes in CASTS.items() for mode in modes])
def test_cast_rounds_as_the_mode_says(types: str, mode: int, run: Launch) -> None:
    target, source = next(
        (t, types[len(t) + 1 :]) for t in DTYPES if types.startswith(f"{t}_") and types[len(t) + 1 :] in DTYPES
    )
    a = cast_inputs(DTYPES[source], 129)
    n = a.numel()
    mode_bytes = torch.full((n * 8,), mode, dtype=torch.uint8)
    result = run(f"Cast_{types}", a, mode_bytes, torch.empty(n, dtype=DTYPES[target]), n)
    expected = torch.tensor(
        [cast_value(value, DTYPES[source], DTYPES[target], mode) for value in a.tolist()],
        dtype=torch.float64 if DTYPES[target].is_floating_point else torch.int64,
    )
    torch.testing.assert_close(result.to(expected.dtype), expected, rtol=0, atol=0, equal_nan=True)
