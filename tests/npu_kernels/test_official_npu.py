# SPDX-License-Identifier: Apache-2.0
"""The cost model of CANN's own operator in benchmarks/official_npu.py, against published times and counts by hand."""

from __future__ import annotations

import importlib

import pytest
from locations import CHECKOUT

if not (CHECKOUT / "benchmarks").is_dir():
    pytest.skip("the package under test is installed, not a checkout", allow_module_level=True)
model = importlib.import_module("official_npu")


PUBLISHED = {(1024, 1024): 44.64, (4, 131072): 26.66}  # us, for halves, on an unnamed chip


def test_the_page_has_the_estimates_of_what_was_published() -> None:
    page = (CHECKOUT / "docs" / "virtual-npu.md").read_text("utf-8").splitlines()
    for (rows, classes), measured in PUBLISHED.items():
        times = model.official("forward", rows, classes, 2, "Ascend910B2").times
        estimated = " | ".join(f"{times[name].estimate:.1f} us" for name in ("table", "fast", "slow"))
        assert f"| {rows} x {classes} | {measured} us | {estimated} |" in page


def test_waits_make_up_for_what_the_rates_leave_of_one_published_time_and_not_more() -> None:
    case = model.Problem(model.KERNELS["forward", 2], 1024, 1024, 2)
    assert PUBLISHED[1024, 1024] == model.PUBLISHED
    for chip in model.chips("Ascend910B2").values():
        assert case.times(chip).estimate == pytest.approx(max(44.64, case.without_waits(chip)))


def test_the_other_published_time_lies_between_the_ends() -> None:
    """The waits were fitted to the other time only."""
    times = model.official("forward", 4, 131072, 2, "Ascend910B2").times
    assert times["fast"].estimate < PUBLISHED[4, 131072] < times["slow"].estimate


def test_a_long_row_takes_what_its_copies_and_its_arithmetic_take() -> None:
    """One core, float32, a row of ten tiles. The row is read three times and written once, at 32 bytes a cycle, and
    each of the 30 reads has its latency. For each 64 elements, a max and a sum take 2.12 reductions of 2 cycles, exp
    takes 4 cycles, two other instructions 1 each. For each 8192 elements, nine reductions start, in 22 cycles each, and
    the scalar unit reads one sum, in 11."""
    classes, chunks = 10 * 47744, 59
    copies, vector = 4 * classes * 4 / 32 + 30 * 190, classes / 64 * (2.12 * 2 + 4 + 2) + chunks * 9 * 22
    chip = model.chips("Ascend910B2")["table"]
    launch = chip.launch(1)
    assert launch == pytest.approx(12.9 / 48)
    cycles = copies + vector + chunks * 11
    row = model.Problem(model.KERNELS["forward", 4], 1, classes, 4)
    assert row.without_waits(chip) - launch == pytest.approx(cycles / 1.8e3, rel=0.01)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_each_end_moves_what_the_rates_explain_its_way(direction: str) -> None:
    chips = model.chips("Ascend910B2")
    problem = model.Problem(model.KERNELS[direction, 2], 4096, 8080, 2)
    times = {name: problem.without_waits(chip) for name, chip in chips.items()}
    for name, time in times.items():
        if name.endswith("fast"):
            assert time <= times["table"]
        if name.endswith("slow"):
            assert time >= times["table"]
    assert times["slow"] == max(times.values())
