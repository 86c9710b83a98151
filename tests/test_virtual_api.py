# SPDX-License-Identifier: Apache-2.0
"""The virtual Ascend C computes what its manual says: every API against torch or an exact formula, on awkward sizes."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
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
NONE, RINT, FLOOR, CEIL, ROUND, TRUNC, ODD = range(7)
ROUNDING = (RINT, FLOOR, CEIL, ROUND, TRUNC)

Launch = Callable[..., Tensor]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """run(kernel, a, b, result, n) gives the result; the machine has nothing to say about the kernel."""
    kernels.acl()
    folder = tmp_path_factory.mktemp("api")
    sources = sorted(KERNELS.glob("api_*.asc"))
    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(lambda s: kernels.compile_kernels(s, folder / f"{s.stem}.so"), sources))

    def launch(kernel: str, a: Tensor, b: Tensor, result: Tensor, n: int) -> Tensor:
        (launcher,) = (
            _function(library, f"launch_{kernel}") for library in libraries if hasattr(library, f"launch_{kernel}")
        )
        with kernels.on_device(a) as a_gm, kernels.on_device(b) as b_gm, kernels.on_device(result) as result_gm:
            outcome = kernels.launch(launcher, a_gm, b_gm, result_gm, n)
        assert outcome.report["violations"] == [], outcome.message
        return result

    return launch


def _function(library: ctypes.CDLL, name: str) -> Callable[..., object]:
    return library[name]


def numbers(dtype: torch.dtype, size: int, low: float = -20, high: float = 20) -> Tensor:
    values = torch.rand(size, dtype=torch.float64) * (high - low) + low
    return values.to(dtype)


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
    """The manual's rounding, by exact fractions."""
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
    # No page says; IEEE 754 goes to infinity only in the direction of the mode.
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
    """Halves and their neighbours, ties, subnormals and the ends of every range."""
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


def tree_sum(values: Tensor) -> Tensor:
    while values.numel() > 1:
        values = values[0::2] + values[1::2]
    return values[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", ["ReduceSum_float", "ReduceSum_half"])
def test_sums_are_trees_within_repeats_and_sequences_over_them(kernel: str, size: int, run: Launch) -> None:
    dtype = DTYPES[kernel.partition("_")[2]]
    a = numbers(dtype, size)
    result = run(kernel, a, a, torch.empty(1, dtype=dtype), size)
    lanes = 256 // a.element_size()
    padded = torch.cat([a, torch.zeros(-size % lanes, dtype=dtype)]).view(-1, lanes)
    expected = tree_sum(padded[0])
    for repeat in padded[1:]:
        expected = expected + tree_sum(repeat)
    assert torch.equal(result, expected.view(1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kernel", "truth"),
    [("ReduceMax_float", torch.max), ("ReduceMin_half", torch.min), ("ReduceMaxIndex_float", torch.max),
     ("ReduceMinIndex_half", torch.min)],
)  # fmt: skip
def test_extremes(kernel: str, truth: Callable[..., tuple[Tensor, Tensor]], size: int, run: Launch) -> None:
    dtype = DTYPES[kernel.partition("_")[2]]
    a = numbers(dtype, size, -9, 9).round()  # with ties: the lowest index wins
    result = run(kernel, a, a, torch.zeros(2, dtype=dtype), size)
    assert result[0] == truth(a)
    if "Index" in kernel:
        index = result.view(torch.int32 if dtype == torch.float32 else torch.int16)[1]
        assert index == (a == truth(a)).nonzero()[0, 0]


def test_reductions_of_repeats_blocks_and_pairs(run: Launch) -> None:
    a = numbers(torch.float32, 512)
    windows = torch.stack([a[128 * i : 128 * i + 40] for i in range(4)])
    sums = run("WholeReduceSum_float", a, a, torch.empty(4), 512)
    assert torch.equal(sums, torch.stack([tree_sum(torch.cat([w, torch.zeros(24)])) for w in windows]))
    pairs = run("WholeReduceMax_float", a, a, torch.empty(8), 512)
    assert torch.equal(pairs[0::2], windows.amax(1))
    assert torch.equal(pairs.view(torch.int32)[1::2].long(), windows.argmax(1))

    h = numbers(torch.float16, 512)
    pairs = run("WholeReduceMin_half", h, h, torch.empty(8, dtype=torch.float16), 512)
    assert torch.equal(pairs[0::2], torch.stack([h[128 * i : 128 * i + 40] for i in range(4)]).amin(1))
    blocks = run("BlockReduceSum_half", h, h, torch.empty(32, dtype=torch.float16), 512)
    assert torch.equal(blocks, torch.stack([tree_sum(block) for block in h.view(32, 16)]))

    assert torch.equal(run("BlockReduceMax_float", a, a, torch.empty(64), 512), a.view(64, 8).amax(1))
    assert torch.equal(run("PairReduceSum_float", a, a, torch.empty(256), 512), a[0::2] + a[1::2])


COMPARISONS = {"LT": torch.lt, "GT": torch.gt, "EQ": torch.eq, "LE": torch.le, "GE": torch.ge, "NE": torch.ne}


def bits(flags: Tensor) -> Tensor:
    return (flags.view(-1, 8) * 2 ** torch.arange(8)).sum(1).to(torch.uint8)


@pytest.mark.parametrize("size", [128, 256, 1024])
@pytest.mark.parametrize("kernel", ["LT_float", "GT_half", "EQ_int32_t", "LE_half", "GE_float", "NE_float"])
def test_compare_gives_a_bit_for_each_element(kernel: str, size: int, run: Launch) -> None:
    mode, _, type_name = kernel.partition("_")
    a, b = (numbers(DTYPES[type_name], size, -3, 3).round() for _ in range(2)) if "int" not in type_name else (
        torch.randint(-3, 3, (size,), dtype=torch.int32) for _ in range(2)
    )  # fmt: skip
    empty = torch.empty(size // 8, dtype=torch.uint8)
    assert torch.equal(run(f"Compare{kernel}", a, b, empty.clone(), size), bits(COMPARISONS[mode](a, b)))
    ones = torch.ones_like(a)
    assert torch.equal(run(f"CompareScalar{kernel}", a, b, empty.clone(), size), bits(COMPARISONS[mode](a, ones)))


def test_select(run: Launch) -> None:
    a, b = numbers(torch.float32, 256), numbers(torch.float32, 256)
    assert torch.equal(run("Select2_float", a, b, torch.empty(256), 256), torch.maximum(a, b))
    first = (a > b)[:64].repeat(4)  # mode 0 uses the bits of one repeat in all of them
    assert torch.equal(run("Select0_float", a, b, torch.empty(256), 256), torch.where(first, a, b))
    h, i = a.half(), b.half()
    chosen = run("Select1_half", h, i, torch.empty(256, dtype=torch.float16), 256)
    assert torch.equal(chosen, torch.where(h > i, h, torch.tensor(-1.0, dtype=torch.float16)))


@pytest.mark.parametrize("size", SIZES)
def test_gathers_and_fills(size: int, run: Launch) -> None:
    a = numbers(torch.float32, size)
    index = torch.randint(0, size, (size,), dtype=torch.int32)
    assert torch.equal(run("Gather_float", a, index * 4, torch.empty(size), size), a[index.long()])
    if size > 1:
        odd = run("GatherMaskOdd_float", a, a, torch.empty(size // 2 + 1), size)
        assert torch.equal(odd, torch.cat([a[1::2], torch.tensor([float(size // 2)])]))
    counted = run("CreateVecIndex_int32_t", index, index, torch.empty(size, dtype=torch.int32), size)
    assert torch.equal(counted, torch.arange(5, size + 5, dtype=torch.int32))
    wide = a.bfloat16()
    assert torch.equal(
        run("Duplicate_bfloat16_t", wide, wide, torch.empty_like(wide), size), torch.full_like(wide, 1.5)
    )
    assert torch.equal(run("Axpy_float", a, a, torch.empty(size), size), 1 + 2 * a)


def test_strides_and_masks_leave_the_rest_alone(run: Launch) -> None:
    a, b = numbers(torch.float32, 512), numbers(torch.float32, 512)
    result = run("AddStrided_float", a, b, torch.empty(256), 512)
    expected = torch.ones(4, 64)
    sources = a.view(4, 8, 2, 8)[:, :, 0].reshape(4, 64)
    expected[:, 0::2] = (sources + b[:64])[:, 0::2]
    assert torch.equal(result, expected.flatten())


def test_brcb_spreads_each_element_over_a_block(run: Launch) -> None:
    a = numbers(torch.float32, 64)
    assert torch.equal(run("Brcb_float", a, a, torch.empty(512), 64), a.repeat_interleave(8))


@pytest.mark.parametrize("size", SIZES)
def test_atomic_add_rounds_once(size: int, run: Launch) -> None:
    a, held = numbers(torch.float16, size), numbers(torch.float16, size)
    assert torch.equal(run("AtomicAdd_half", a, a, held.clone(), size), (a.double() + held.double()).half())
