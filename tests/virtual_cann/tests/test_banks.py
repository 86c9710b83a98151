# SPDX-License-Identifier: Apache-2.0
"""Bank conflicts, and their costs, agree with the manual and with measurements on an A2."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from virtual_cann import kernels

CONFLICTS = Path(__file__).parent / "kernels/bank_conflicts.asc"
REPEATS = 64
MEASURED_HERTZ, HERTZ = 1.85e9, 1.8e9  # of the measured A2; of the virtual CANN's default chip


class Sample(NamedTuple):
    """A scenario of the published sample bank_conflict_ub. `ticks` of 50 MHz is the time of 1000 Adds on an A2, from
    its README. With `step`, src0 is one block a repeat, `step` blocks after the one before."""

    dst: int
    src0: int
    src1: int
    ticks: int
    conflicts: dict[str, int]  # of one Add
    step: int | None = None


def conflicts(
    read_read: int = 0, write_write: int = 0, read_write: int = 0, cycles: int | None = None
) -> dict[str, int]:
    return {
        "bank_conflicts": read_read + write_write + read_write if cycles is None else cycles,
        "read_read_conflicts": read_read,
        "write_write_conflicts": write_write,
        "read_write_conflicts": read_write,
    }


def conflicts_of(report: dict[str, Any]) -> dict[str, int]:
    return {name: report["total"][name] for name in conflicts()}


SAMPLES = {
    "groups and banks apart": Sample(0x20000, 0, 0x10100, 2390, conflicts()),
    "two sources in a bank": Sample(0x10000, 0, 0x4000, 4167, conflicts(read_read=REPEATS)),
    "two sources in a group": Sample(0x14100, 0, 0x10000, 4167, conflicts(read_read=REPEATS)),
    "dst in the banks of a source": Sample(0x4000, 0, 0x10100, 2389, conflicts()),
    "dst a block off the banks of a source": Sample(0x4020, 0, 0x10100, 3751, conflicts(read_write=REPEATS)),
    "dst is a source": Sample(0x10100, 0, 0x10100, 2390, conflicts()),
    "a block, and the next": Sample(0x10100, 0, 0x10100, 3584, conflicts(read_read=REPEATS // 2), step=1),
    "a block, and the eighth": Sample(0x10100, 0, 0x10100, 2389, conflicts(), step=8),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return kernels.compile_kernels(CONFLICTS, tmp_path_factory.mktemp("banks") / "banks.so")


def launch(launcher: Any, *arguments: int) -> dict[str, Any]:
    outcome = kernels.launch(launcher, 1, *arguments)
    assert outcome.message == ""
    report: dict[str, Any] = outcome.report
    return report


def run_sample(library: ctypes.CDLL, sample: Sample, times: int) -> dict[str, Any]:
    if sample.step is None:
        return launch(library.launch_add, sample.dst, sample.src0, sample.src1, times)
    return launch(library.launch_add_block, sample.dst, sample.src0, sample.src1, sample.step, times)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_published_scenario_has_its_conflicts_and_its_time(library: ctypes.CDLL, name: str) -> None:
    sample = SAMPLES[name]
    idle, busy = (run_sample(library, sample, times) for times in (0, 100))
    assert conflicts_of(idle) == conflicts()
    assert conflicts_of(busy) == {kind: 100 * times for kind, times in sample.conflicts.items()}
    measured = sample.ticks / 50e6 / 1000 * MEASURED_HERTZ  # cycles
    estimated = (busy["estimates"]["table"]["V"] - idle["estimates"]["table"]["V"]) / 100 * 1e-6 * HERTZ
    assert estimated == pytest.approx(measured, rel=0.12)


def test_a_write_that_is_put_off_meets_the_other_source_in_its_third(library: ctypes.CDLL) -> None:
    """The first half of a tile is added to the second, in place: after the last repeat nothing more is read."""
    report = launch(library.launch_add, 0, 0, 0x4100, 1)
    assert conflicts_of(report) == conflicts(read_write=REPEATS - 1)


@pytest.mark.parametrize(
    ("to_stride", "from_stride", "expected"),
    [
        (1, 1, conflicts()),
        (2, 2, conflicts()),  # every other one of the 16 groups: eight blocks, no conflict
        (16, 1, conflicts(write_write=7)),  # the manual's example: all blocks in one group, 8 cycles
        (8, 1, conflicts(write_write=3)),  # the manual's: all blocks in two groups, 4 cycles
        (1, 16, conflicts(read_read=7)),
        (1, 8, conflicts(read_read=3)),
        (16, 8, conflicts(read_read=3, write_write=7, cycles=7)),  # reads and writes wait at the same time
    ],
)
def test_blocks_of_an_operand_wait_for_each_other(
    library: ctypes.CDLL, to_stride: int, from_stride: int, expected: dict[str, int]
) -> None:
    report = launch(library.launch_strides, to_stride, from_stride)
    assert conflicts_of(report) == {kind: 4 * each for kind, each in expected.items()}


@pytest.mark.parametrize(
    ("dst", "src", "read_write"),
    [
        (0x10000, 0, 0),  # in another third
        (0x4000, 0, 1),  # in the first repeat, groups 0 to 3 are read and 0 to 7 written
        (0x4100, 0, 1),  # in the second repeat, groups 4 to 7 are read and 0 to 7 written
    ],
)
def test_a_cast_reads_and_writes_at_different_paces(library: ctypes.CDLL, dst: int, src: int, read_write: int) -> None:
    report = launch(library.launch_cast, dst, src)
    assert conflicts_of(report) == conflicts(read_write=read_write)
