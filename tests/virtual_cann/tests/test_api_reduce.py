# SPDX-License-Identifier: Apache-2.0
"""The virtual Ascend C computes what its manual says: reductions, comparisons, Select, gathers, fills and atomics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from api_kernels import DTYPES, SIZES, Launch, launcher_of, numbers
from torch import Tensor


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return launcher_of("api_reduce", tmp_path_factory.mktemp("api"))


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
    a = numbers(dtype, size, -9, 9).round()  # rounded, so that values tie: the lowest index wins
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
    first = (a > b)[:64].repeat(4)  # in mode 0 all repeats use the bits of the first
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
    wide = a.bfloat16()
    assert torch.equal(
        run("Duplicate_bfloat16_t", wide, wide, torch.empty_like(wide), size), torch.full_like(wide, 1.5)
    )
    assert torch.equal(run("Axpy_float", a, a, torch.empty(size), size), 1 + 2 * a)


@pytest.mark.parametrize("size", SIZES)
def test_an_index_counts_from_its_first_value(size: int, run: Launch) -> None:
    for kernel in ("CreateVecIndex_int32_t", "CreateVecIndex_float", "CreateVecIndex_half", "CreateVecIndex_int16_t"):
        unused = torch.zeros(size, dtype=DTYPES[kernel.partition("_")[2]])
        counted = run(kernel, unused, unused, torch.empty_like(unused), size)
        assert torch.equal(counted, torch.arange(5, size + 5).to(unused.dtype))
    unused = torch.zeros(size, dtype=torch.int32)
    first_block = (torch.tensor(2**24 + 1).float() + torch.arange(8.0)).int()  # which CANN 8.5 computes in floats
    expected = first_block.repeat(-(-size // 8))[:size] + 8 * (torch.arange(size) // 8)
    counted = run("CreateVecIndexFar_int32_t", unused, unused, torch.empty_like(unused), size)
    assert torch.equal(counted, expected.int())


@pytest.mark.parametrize(("kernel", "lanes"), [("MaskOfGather_float", 70 - 64), ("MaskOfBrcb_float", 64)])
def test_a_call_leaves_the_mask_register_as_its_last_instruction_had_it(kernel: str, lanes: int, run: Launch) -> None:
    a = numbers(torch.float32, 70, 1, 9)
    result = run(kernel, a, a, torch.empty(70), 70)
    assert torch.equal(result, torch.where(torch.arange(70) < lanes, a, 0))


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
