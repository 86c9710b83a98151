# SPDX-License-Identifier: Apache-2.0
"""The estimates are close to measurements on an A2, and the ends of the rates' ranges bracket them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from virtual_cann import kernels, observe, rates

SOURCES = Path(__file__).parent / "kernels"

# Times of the published sample add_high_performance on an A2 with 48 vector cores, in microseconds, from its README:
# 8192 x 8192 halves, two tensors read and one written, 402653184 bytes in all. "task" is the whole launch; "MTE2" is
# the time in which a core's copies into UB were busy: with two buffers, nearly all of the cores' run time.
#   case 3: one buffer of each operand, 32 KB copies
#   case 4: two buffers
#   case 6: two buffers, reads that bypass the L2, operands of one instruction in different bank groups
MEASURED = {
    "one_buffer": {"task": 268.5},
    "two_buffers": {"task": 264.02},
    "round_the_l2": {"task": 184.52, "MTE2": 171.611, "V": 6.954},
}


@pytest.fixture(scope="module")
def published_add(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return kernels.compile_kernels(SOURCES / "published_add.asc", tmp_path_factory.mktemp("published") / "add.so")


Estimates = dict[tuple[str, int], dict[str, dict[str, float]]]  # (launch, cores) -> assumption -> estimate


@pytest.fixture(scope="module")
def estimates(published_add: ctypes.CDLL) -> Estimates:
    x, y = torch.full((8192, 8192), 1.5, dtype=torch.half), torch.full((8192, 8192), 2.0, dtype=torch.half)
    estimates = {}
    for name, cores in [*((name, 48) for name in MEASURED), ("one_buffer", 1), ("two_buffers", 1)]:
        z = torch.zeros_like(x)
        with kernels.on_device(x) as x_gm, kernels.on_device(y) as y_gm, kernels.on_device(z) as z_gm:
            outcome = kernels.launch(published_add[f"launch_{name}"], cores, x_gm, y_gm, z_gm)
        assert outcome.message == ""
        assert (z == 3.5).all()
        estimates[name, cores] = outcome.report["estimates"]
    return estimates


@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_is_near_what_was_measured(estimates: Estimates, name: str) -> None:
    assert estimates[name, 48]["table"]["microseconds"] == pytest.approx(MEASURED[name]["task"], rel=0.1)


@pytest.mark.parametrize(
    ("name", "pipe"), [(name, pipe) for name in MEASURED for pipe in MEASURED[name] if pipe != "task"]
)
def test_the_pipes_are_busy_for_as_long_as_was_measured(estimates: Estimates, name: str, pipe: str) -> None:
    assert estimates[name, 48]["table"][pipe] == pytest.approx(MEASURED[name][pipe], rel=0.1)


def test_two_buffers_hide_the_arithmetic_that_one_has_to_wait_for(estimates: Estimates) -> None:
    """On one core, which the memory does not limit. Copies out of UB overlap copies into it with either."""
    one, two = estimates["one_buffer", 1]["table"], estimates["two_buffers", 1]["table"]
    assert one["microseconds"] > one["MTE2"] + one["V"]
    assert two["microseconds"] == pytest.approx(two["MTE2"], rel=0.02)


def times_of(estimates: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: estimate["microseconds"] for name, estimate in estimates.items()}


def test_there_is_an_estimate_at_every_end(estimates: Estimates) -> None:
    for estimate in estimates.values():
        assert list(estimate) == list(rates.assumptions())


def brackets(times: dict[str, float]) -> bool:
    """For a launch on all cores, or one that takes long beside the launch's own cost."""
    ends = ((time, name.rpartition(" ")[2]) for name, time in times.items() if name != "table")
    inside = all(time <= times["table"] if end == "fast" else time >= times["table"] for time, end in ends)
    return inside and times["fast"] <= min(times.values()) and times["slow"] >= max(times.values())


def test_the_ends_bracket_the_estimate(estimates: Estimates) -> None:
    for (_, cores), estimate in estimates.items():
        times = times_of(estimate)
        if cores == 1:  # the table's launch cost is lower for one core
            more = times["launch fast"] - times["table"]
            times = times | {"launch fast": times["table"], "fast": round(times["fast"] - more, 5)}
        assert brackets(times)
        assert times["fast"] < times["table"] < times["slow"]


def test_a_short_copy_costs_as_much_as_a_longer_one(estimates: Estimates) -> None:
    """At the slow end, each copy into UB costs 3072 bytes more, at 32 bytes a cycle."""
    estimate = estimates["two_buffers", 1]
    copies = 2 * -(-8192 * 8192 // 15488)  # tiles of published_add.asc
    more = estimate["short_copy slow"]["MTE2"] - estimate["table"]["MTE2"]
    assert more == pytest.approx(copies * 3072 / 32 / 1.8e3, rel=0.02)


def test_what_moves_much_is_not_in_the_l2(estimates: Estimates) -> None:
    """402,653,184 bytes take longer at the slow end: 0.98 TB/s instead of 1.6."""
    times = times_of(estimates["two_buffers", 48])
    assert times["l2 fast"] == times["table"]
    assert times["hbm slow"] - times["table"] == pytest.approx(402.653184 * (1 / 0.98 - 1 / 1.6), rel=0.02)


def add(library: ctypes.CDLL, elements: int, blocks: int = 48) -> tuple[dict[str, Any], torch.Tensor]:
    x, y, z = torch.ones(elements), torch.ones(elements), torch.zeros(elements)
    with kernels.on_device(x) as x_gm, kernels.on_device(y) as y_gm, kernels.on_device(z) as z_gm:
        outcome = kernels.launch(library.launch_add_float32, blocks, x_gm, y_gm, z_gm, ctypes.c_uint64(elements))
    assert outcome.message == ""
    return outcome.report, z


@pytest.fixture(scope="module")
def adding(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return kernels.compile_kernels(SOURCES / "add.asc", tmp_path_factory.mktemp("add") / "add.so")


def test_what_moves_little_may_be_in_the_l2(adding: ctypes.CDLL) -> None:
    """12 MB take less at the fast end: 2 TB/s instead of 1.6, since 48 cores of 64 bytes a cycle allow more."""
    times = times_of(add(adding, 2**20)[0]["estimates"])
    assert times["hbm slow"] == times["table"]
    assert times["table"] - times["l2 fast"] == pytest.approx(12 * 2**20 * (1 / 1.6e6 - 1 / 2e6), rel=0.1)


def test_of_some_blocks_a_report_is_like_that_of_all(adding: ctypes.CDLL) -> None:
    elements = 48 * 2**15  # whole tiles, the same number in each block
    whole, _ = add(adding, elements)
    observe.run_every_nth_block(16)
    try:
        part, z = add(adding, elements)
    finally:
        observe.run_every_nth_block(1)
    assert (part["blocks"], part["blocks_run"], whole["blocks_run"]) == (48, 3, 48)
    assert times_of(part["estimates"]) == pytest.approx(times_of(whole["estimates"]), rel=0.01)
    assert part["total"]["gm_bytes_read"] * 16 == pytest.approx(whole["total"]["gm_bytes_read"], rel=0.01)
    assert z.count_nonzero() == elements / 16


def test_a_910b4_has_half_of_the_memorys_rate() -> None:
    """A process of its own, since the chip is chosen once. 126 MB are more than its L2 holds."""
    program = f"""
import sys
sys.path[:0] = {[str(SOURCES.parent), str(SOURCES.parents[2])]!r}
import tempfile
from pathlib import Path
from test_estimates import SOURCES, add
from virtual_cann import kernels
with tempfile.TemporaryDirectory() as folder:
    library = kernels.compile_kernels(SOURCES / "add.asc", Path(folder) / "add.so")
print(add(library, 10 * 2**20, 40)[0]["estimates"]["table"]["microseconds"])
"""
    environment = os.environ | {"VIRTUAL_CANN_SOC": "Ascend910B4"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) - 12.9 == pytest.approx(12 * 10 * 2**20 / 0.8e6, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_faster_arithmetic_never_makes_a_kernel_slower(dtype: torch.dtype, tmp_path: Path) -> None:
    """Its reads begin while the vector unit works, and share the memory with writes that wait for the vector unit."""
    library = kernels.compile_kernels(SOURCES / "log_softmax.asc", tmp_path / "log_softmax.so")
    rows, cols = 8 * 48, 8192
    x, y = torch.zeros(rows, cols, dtype=dtype), torch.empty(rows, cols, dtype=dtype)
    with kernels.on_device(x) as x_gm, kernels.on_device(y) as y_gm:
        launcher = library[f"launch_log_softmax_{str(dtype).removeprefix('torch.')}"]
        outcome = kernels.launch(launcher, 48, x_gm, y_gm, rows, cols)
    assert outcome.message == ""
    times = times_of(outcome.report["estimates"])
    assert brackets(times)
    assert times["exp fast"] < times["table"] < times["exp slow"]
