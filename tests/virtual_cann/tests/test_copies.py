# SPDX-License-Identifier: Apache-2.0
"""The bytes that copies write beside their data (the manual's page DataCopyPad), and the macro that a hint needs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from virtual_cann import kernels

SOURCES = Path(__file__).resolve().parent / "kernels"
VALUE = -1.0  # the padding's value; the blocks hold 1 to 5 and 6 to 10


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return kernels.compile_kernels(SOURCES / "copies.asc", tmp_path_factory.mktemp("copies") / "copies.so")


def run(launcher: Callable[..., Any], x: torch.Tensor, elements: int, *padding: int) -> tuple[kernels.Outcome, list]:
    y = torch.zeros(elements, dtype=x.dtype)
    with kernels.on_device(x) as x_gm, kernels.on_device(y) as y_gm:
        outcome = kernels.launch(launcher, x_gm, y_gm, *padding, *([elements] if padding else []))
    return outcome, y.tolist()


@pytest.mark.parametrize("is_pad", [False, True])
def test_without_padding_a_block_is_filled_up_with_its_first_element(copies: ctypes.CDLL, is_pad: bool) -> None:
    outcome, y = run(copies.launch_float, torch.arange(1.0, 11), 16, is_pad, 0, 0)
    assert outcome.message == ""
    assert y == [1, 2, 3, 4, 5, 1, 1, 1, 6, 7, 8, 9, 10, 6, 6, 6]


@pytest.mark.parametrize(("left", "right", "behind"), [(0, 3, 3), (0, 1, 3), (2, 0, 1), (2, 1, 1), (8, 8, 11)])
def test_padding_and_all_up_to_the_block_is_the_value(copies: ctypes.CDLL, left: int, right: int, behind: int) -> None:
    """The value also fills the bytes between the requested padding and the next multiple of 32."""
    outcome, y = run(copies.launch_float, torch.arange(1.0, 11), 2 * (left + 5 + behind), True, left, right)
    assert outcome.message == ""
    before, after = [VALUE] * left, [VALUE] * behind
    assert y == [*before, 1, 2, 3, 4, 5, *after, *before, 6, 7, 8, 9, 10, *after]


@pytest.mark.parametrize(("left", "right"), [(0, 3), (3, 0), (1, 1)])
def test_padding_without_a_value_is_undefined(copies: ctypes.CDLL, left: int, right: int) -> None:
    outcome, _ = run(copies.launch_float, torch.arange(1.0, 11), 16, False, left, right)
    assert outcome.rules_broken == {"ub_uninitialised"}


def test_elements_of_64_bits_are_filled_up_by_halves(copies: ctypes.CDLL) -> None:
    """They are copied as pairs of 32 bits, so the filler is the lower half of the first number."""
    numbers = torch.arange(1, 11) + (7 << 32)
    _, filled = run(copies.launch_int64, numbers, 16, True, 0, 0)
    assert filled[:8] == [*numbers[:5].tolist(), *[(1 << 32) + 1] * 3]
    _, padded = run(copies.launch_int64, numbers, 16, True, 0, 3)
    assert padded == [*numbers[:5].tolist(), 0, 0, 0, *numbers[5:].tolist(), 0, 0, 0]


def test_a_global_tensor_knows_its_size(copies: ctypes.CDLL) -> None:
    outcome, sizes = run(copies.launch_global_sizes, torch.zeros(100, dtype=torch.int64), 4)
    assert outcome.message == ""
    assert sizes == [100, 0, 97, 1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("TPipe pipe; TQue<QuePosition::VECIN, 0> queue; pipe.InitBuffer(queue, 1, 32);", "a queue of depth 0"),
        ("TPipe pipe; pipe.FetchEventID(HardEvent::MTE1_M);", "MTE1_M"),
    ],
    ids=["queue of depth 0", "event of a cube core"],
)
def test_what_a_vector_core_or_the_oldest_headers_lack_does_not_compile(
    tmp_path: Path, body: str, message: str
) -> None:
    source = tmp_path / "kernel.asc"
    source.write_text(
        '#include "kernel_operator.h"\nusing namespace AscendC;\n'
        f'extern "C" __global__ __aicore__ void kernel() {{ {body} }}\n'
    )
    with pytest.raises(kernels.CompileError, match=message):
        kernels.compile_kernels(source, tmp_path / "kernel.so")


def test_a_hint_for_the_l2_needs_its_macro(tmp_path: Path) -> None:
    """-x asc defines the macro. Reads that bypass the L2 leave it to the writes, and the launch is faster."""
    times = {}
    for flags in ((), ("-UL2_CACHE_HINT",)):
        library = kernels.compile_kernels(SOURCES / "published_add.asc", tmp_path / f"{len(flags)}.so", *flags)
        x = torch.full((8192, 8192), 1.5, dtype=torch.half)
        with kernels.on_device(x) as x_gm, kernels.on_device(torch.zeros_like(x)) as z_gm:
            outcome = kernels.launch(library.launch_round_the_l2, 48, x_gm, x_gm, z_gm)
        assert outcome.message == ""
        times[flags] = outcome.report["estimates"]["table"]["microseconds"]
    assert times[()] < 0.8 * times["-UL2_CACHE_HINT",]
