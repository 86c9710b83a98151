# SPDX-License-Identifier: Apache-2.0
"""CANN's own operator, as benchmarks/official_npu.py costs it: beside what was published, and by hand."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the package under test is installed, not a checkout", allow_module_level=True)
model = importlib.import_module("official_npu")


@pytest.mark.parametrize(("rows", "classes", "measured"), [(1024, 1024, 44.64), (4, 131072, 26.66)])
def test_a_published_time_lies_between_the_ends(rows: int, classes: int, measured: float) -> None:
    """Of halves, on a chip that is not named; docs/virtual-npu.md has the estimates."""
    times = model.official("forward", rows, classes, 2, "Ascend910B2").times
    assert times["fast"].estimate < measured < times["slow"].estimate
    estimated = " | ".join(f"{times[name].estimate:.1f} us" for name in ("table", "fast", "slow"))
    page = (ROOT / "docs" / "virtual-npu.md").read_text("utf-8")
    assert f"| {rows} x {classes} | {measured} us | {estimated} |" in page.splitlines()


def test_a_long_row_takes_what_its_copies_and_its_arithmetic_take() -> None:
    """One core, float32, a row of ten tiles. At 32 bytes a cycle it is read three times and written once, and each of
    the 30 reads has its latency; of 64 elements a max and a sum take 2.12 reductions of 2 cycles, exp 4, two others 1
    each; of each 8192 elements nine reductions begin, in 22 cycles, and the scalar unit reads one sum, in 11.
    """
    classes, chunks = 10 * 47744, 59
    copies, vector = 4 * classes * 4 / 32 + 30 * 190, classes / 64 * (2.12 * 2 + 4 + 2) + chunks * 9 * 22
    times = model.official("forward", 1, classes, 4, "Ascend910B2").times["table"]
    assert times.launches == pytest.approx(12.9 / 48)
    cycles = copies + vector + chunks * 11
    assert times.estimate - times.launches == pytest.approx(cycles / 1.8e3, rel=0.01)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_each_end_moves_the_estimate_its_way(direction: str) -> None:
    times = model.official(direction, 4096, 8080, 2, "Ascend910B2").times
    for name, time in times.items():
        if name.endswith("fast"):
            assert time.estimate <= times["table"].estimate
        if name.endswith("slow"):
            assert time.estimate >= times["table"].estimate
    assert times["slow"].estimate == max(time.estimate for time in times.values())
