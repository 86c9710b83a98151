# SPDX-License-Identifier: Apache-2.0
"""What copies leave in UB beside their data, as the manual's page on DataCopyPad has it, and what a hint needs."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from virtual_cann import kernels

SOURCES = Path(__file__).resolve().parent / "kernels"
VALUE = -1.0  # of the padding; blocks are 1 to 5 and 6 to 10


@pytest.fixture(scope="module")
def fillers(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return kernels.compile_kernels(SOURCES / "copy_fillers.asc", tmp_path_factory.mktemp("fillers") / "fillers.so")


def copied(launcher: object, x: torch.Tensor, is_pad: bool, left: int, right: int, elements: int) -> kernels.Outcome:
    y = torch.zeros(elements, dtype=x.dtype)
    with kernels.on_device(x) as x_gm, kernels.on_device(y) as y_gm:
        outcome = kernels.launch(launcher, x_gm, y_gm, int(is_pad), left, right, elements)
    outcome.report["y"] = y
    return outcome


@pytest.mark.parametrize("is_pad", [False, True])
def test_without_padding_a_block_is_filled_up_with_its_first_element(fillers: ctypes.CDLL, is_pad: bool) -> None:
    outcome = copied(fillers.launch_float, torch.arange(1.0, 11), is_pad, 0, 0, 16)
    assert outcome.message == ""
    assert outcome.report["y"].tolist() == [1, 2, 3, 4, 5, 1, 1, 1, 6, 7, 8, 9, 10, 6, 6, 6]


@pytest.mark.parametrize(
    ("left", "right", "row"),
    [(0, 3, [5, 3]), (0, 1, [5, 3]), (2, 0, [2, 5, 1]), (2, 1, [2, 5, 1]), (8, 8, [8, 5, 11])],
)
def test_padding_and_all_up_to_the_block_is_the_value(
    fillers: ctypes.CDLL, left: int, right: int, row: list[int]
) -> None:
    """Also what lies between the padding that was asked for and the next 32 bytes."""
    before, count, behind = row if len(row) == 3 else [0, *row]
    outcome = copied(fillers.launch_float, torch.arange(1.0, 11), True, left, right, 2 * (before + count + behind))
    assert outcome.message == ""
    rows = [[VALUE] * before + block + [VALUE] * behind for block in ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10])]
    assert outcome.report["y"].tolist() == [number for block in rows for number in block]


@pytest.mark.parametrize(("left", "right"), [(0, 3), (3, 0), (1, 1)])
def test_padding_without_a_value_is_undefined(fillers: ctypes.CDLL, left: int, right: int) -> None:
    assert copied(fillers.launch_float, torch.arange(1.0, 11), False, left, right, 16).rules_broken == {
        "ub_uninitialised"
    }


def test_elements_of_64_bits_are_filled_up_by_halves(fillers: ctypes.CDLL) -> None:
    """They are copied as pairs of 32 bits, the first element of which is the first number's lower half."""
    numbers = torch.arange(1, 11) + (7 << 32)
    filled = copied(fillers.launch_int64, numbers, True, 0, 0, 16).report["y"]
    assert filled[:5].tolist() == numbers[:5].tolist()
    assert filled[5:8].tolist() == [(1 << 32) + 1] * 3
    padded = copied(fillers.launch_int64, numbers, True, 0, 3, 16).report["y"]
    assert padded.tolist() == [*numbers[:5].tolist(), 0, 0, 0, *numbers[5:].tolist(), 0, 0, 0]


def test_a_hint_for_the_l2_needs_its_macro(tmp_path: Path) -> None:
    """Which -x asc defines. Reads that go round the L2 leave it to the writes, and the launch is faster."""
    times = {}
    for macro in ("-DL2_CACHE_HINT", "-UL2_CACHE_HINT"):
        library = kernels.compile_kernels(SOURCES / "published_add.asc", tmp_path / f"{macro}.so", macro, "-O2")
        x = torch.full((8192, 8192), 1.5, dtype=torch.half)
        with kernels.on_device(x) as x_gm, kernels.on_device(torch.zeros_like(x)) as z_gm:
            outcome = kernels.launch(library.launch_round_the_l2, 48, x_gm, x_gm, z_gm)
        assert outcome.message == ""
        times[macro] = outcome.report["estimate"]["microseconds"]
    assert times["-DL2_CACHE_HINT"] < 0.8 * times["-UL2_CACHE_HINT"]
