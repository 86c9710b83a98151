# SPDX-License-Identifier: Apache-2.0
"""A launch's counters, compared with counts by hand."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from virtual_cann import kernels

SOURCES = Path(__file__).parent / "kernels"


@dataclass(frozen=True)
class Counters:
    """The counters of one core, as in machine/report.h. The barriers include one at TPipe's end."""

    gm_bytes_read: int = 0
    gm_bytes_written: int = 0
    dma_reads: int = 0
    dma_writes: int = 0
    dma_sizes: dict[str, int] = field(default_factory=dict)
    vector_instructions: int = 0
    vector_repeats: int = 0
    bank_conflicts: int = 0  # test_banks.py has more
    read_read_conflicts: int = 0
    write_write_conflicts: int = 0
    read_write_conflicts: int = 0
    scalar_ub_accesses: int = 0
    scalar_gm_accesses: int = 0
    flags: int = 0
    barriers: int = 0


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return kernels.compile_kernels(SOURCES / "counted_kernels.asc", tmp_path_factory.mktemp("counted") / "counted.so")


def run(launcher: Any, blocks: int, *tensors: torch.Tensor) -> dict[str, Any]:
    with kernels.on_device(tensors[0]) as x, kernels.on_device(tensors[1]) as y:
        outcome = kernels.launch(launcher, blocks, x, y)
    assert outcome.message == ""
    return outcome.report


IDLE = Counters()
CASES = {
    "copy": (
        Counters(
            gm_bytes_read=4176,  # 1024 floats, and 4 blocks of 5: 4096 + 80
            gm_bytes_written=4176,
            dma_reads=2,
            dma_writes=2,
            dma_sizes={"4096": 2, "80": 2},  # only the data, not the gaps
            flags=6,  # 3 SetFlag, 3 WaitFlag
            barriers=1,
        ),
        IDLE,
    ),
    "add": (
        Counters(
            gm_bytes_read=4000,  # tiles of 256, 256, 256 and 232 floats
            gm_bytes_written=4000,
            dma_reads=4,
            dma_writes=4,
            dma_sizes={"1024": 6, "928": 2},
            vector_instructions=4,
            vector_repeats=4 + 4 + 4 + 4,  # 232 / 64 is 3.6, that is 4 repeats
            barriers=1,
            flags=32,  # two queues, four tiles: EnQue sets and DeQue waits, FreeTensor sets, the next AllocTensor waits
        ),
        Counters(
            gm_bytes_read=1200,  # 256 and 44 floats
            gm_bytes_written=1200,
            dma_reads=2,
            dma_writes=2,
            dma_sizes={"1024": 2, "176": 2},
            vector_instructions=2,
            vector_repeats=4 + 1,
            barriers=1,
            flags=16,
        ),
    ),
    "repeats": (
        Counters(
            gm_bytes_written=2560,  # 640 floats
            dma_writes=1,
            dma_sizes={"2560": 1},
            vector_instructions=4,
            vector_repeats=10 + 5 + 3 + 1,  # a repeat is one, however few of its lanes a mask leaves
            # Two repeats write to the banks that the next one reads, and the Cast to half of those that it reads.
            bank_conflicts=2 + 1,
            read_write_conflicts=2 + 1,
            barriers=4 + 1,
        ),
        IDLE,
    ),
    "reduce": (
        Counters(
            gm_bytes_read=2048,  # 512 floats
            gm_bytes_written=4,
            dma_reads=1,
            dma_writes=1,
            dma_sizes={"2048": 1, "4": 1},
            vector_instructions=3,
            vector_repeats=8 + 1 + 4,
            flags=4,
            barriers=1 + 1,
        ),
        IDLE,
    ),
    "scalars": (
        Counters(
            vector_instructions=1,
            vector_repeats=1,
            scalar_ub_accesses=64 + 2,  # SetValue of each element, and two GetValue
            scalar_gm_accesses=64 + 1,  # GetValue of each element, and a SetValue
            flags=4,
            barriers=1,
        ),
        IDLE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_counters_are_what_one_counts(counted: ctypes.CDLL, name: str) -> None:
    report = run(counted[f"launch_{name}"], 2, torch.ones(2048), torch.zeros(2048))
    assert [Counters(**core) for core in report["cores"]] == list(CASES[name])
    assert report["total"]["gm_bytes_read"] == sum(core.gm_bytes_read for core in CASES[name])
    assert report["total"]["vector_repeats"] == sum(core.vector_repeats for core in CASES[name])


# The instructions and repeats that the headers of dav_c220 issue for a call.
CALLS = {
    "index": (7 + 4, 7 + 4),  # 300 floats: 7 blocks behind the scalar unit's, 3 repeats, and the rest
    "gather": (2, 1 + 1),  # 64 and 6 floats
    "compare": (2, 252 + 1),
    "compare_scalar": (2, 252 + 0),  # the second one has 0 repeats
    "select_scalar": (3, 1 + 1 + 2),  # the scalar is stored to UB, and loaded into a register; 70 floats
    "select_tensor": (3, 1 + 1 + 2),  # the same with the bits' address
    "select_same": (2, 1 + 1),
    "gather_mask": (1, 253),
    "duplicate": (1, 253),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_counts_as_the_instructions_that_the_headers_make_of_it(counted: ctypes.CDLL, name: str) -> None:
    core = run(counted[f"launch_{name}"], 1, torch.ones(2048), torch.zeros(2048))["cores"][0]
    fills = (2, 253 + 8)  # the Duplicates that fill its operands
    assert (core["vector_instructions"], core["vector_repeats"]) == (
        CALLS[name][0] + fills[0],
        CALLS[name][1] + fills[1],
    )


def test_the_scalar_unit_waits_for_the_count_of_gather_mask(counted: ctypes.CDLL) -> None:
    """S starts no copy until then. After an instruction whose result S does not need, the copy runs in parallel."""
    waits, hides = (
        run(counted[f"launch_{name}"], 1, torch.ones(2048), torch.zeros(2048))["estimates"]["table"]
        for name in ("gather_mask", "duplicate")
    )
    launch = hides["microseconds"] - hides["V"]
    assert waits["microseconds"] == pytest.approx(launch + waits["V"] + waits["MTE2"], rel=0.02)


def test_every_counter_is_counted_somewhere() -> None:
    for name in Counters.__dataclass_fields__.keys() - {"read_read_conflicts", "write_write_conflicts"}:
        assert any(getattr(core, name) for cores in CASES.values() for core in cores)


@pytest.mark.parametrize("blocks", [1, 2, 48])
def test_what_a_launch_costs(counted: ctypes.CDLL, blocks: int) -> None:
    """The table's launch cost grows with the blocks; the fast end's is constant, the slow end's is at least 2.8 us."""
    report = run(counted.launch_copy, blocks, torch.ones(2048), torch.zeros(2048))
    times = {name: estimate["microseconds"] for name, estimate in report["estimates"].items()}
    of_blocks = 12.9 * blocks / 48
    assert times["launch fast"] - times["table"] == pytest.approx(1.7 - of_blocks)
    assert times["launch slow"] - times["table"] == pytest.approx(max(2.8, of_blocks) - of_blocks)
