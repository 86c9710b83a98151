# SPDX-License-Identifier: Apache-2.0
"""CANN's own CrossEntropyLoss and CrossEntropyLossGrad on an A2, costed from their documented structure.

A core takes a row at a time, without double buffering: each tile is copied in, worked on and copied out, one after the
other. Where there are fewer rows than cores, the others are idle. Forward reads the row three times (max, sum of
exponentials, log_prob) and writes log_prob; backward reads log_prob and writes the gradient. The second and third read
hit the L2 where the rows that all cores work on fit it, and then run at the rate of one core's DMA, however many read.

The rates are those that the virtual NPU charges our kernels, at the same ends of their ranges, and cores share the
memory here as there. What is not known is assumed in CANN's favour. Forward waits for all cores (SyncAll), which needs
a mixed kernel, but is charged the launch of a kernel of vector cores. Its first read and its write run at the L2's rate
where the logits and what it writes fit the L2, however often it reads them. Between copies and vector instructions,
only what the structure shows is counted: the scalar unit reads each row's target and each reduction's result, and after
the last row the cores' sums go through device memory to one core.

No rate covers SyncAll, the waits between pipes, the issue of instructions and bank conflicts. Together they are taken
to be the time by which a published measurement of many rows a core exceeds the rates' estimate, under each assumption
about the rates, and 0 where it does not. So they never put the estimate of that cell above the measurement.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "support")]

from virtual_cann import rates  # noqa: E402

PUBLISHED = 44.64  # microseconds of forward on 1024 x 1024 halves, as docs/virtual-npu.md has it


@dataclass(frozen=True)
class Chip:
    cores: int
    hertz: float
    l2_bytes: float
    hbm_share: float
    rates: dict[str, float]

    def fits_l2(self, moved: float) -> bool:
        return moved <= self.l2_bytes / 2

    def memory(self, in_l2: bool) -> float:
        """Bytes a second."""
        return self.rates["l2"] if in_l2 else self.rates["hbm"] * self.hbm_share

    def share(self, cores: int, in_l2: bool) -> float:
        """Bytes a cycle for each of the `cores` that work at once."""
        return min(self.rates["dma_of_l2" if in_l2 else "dma"], self.memory(in_l2) / self.hertz / cores)

    def launch(self, blocks: int) -> float:
        """Microseconds before a launch begins."""
        return max(self.rates["launch"], self.rates["launch_on_cores"] * min(1, blocks / self.cores))


@cache
def chips(soc: str) -> dict[str, Chip]:
    """The chip under each of the assumptions about its rates."""
    text = (TESTS / "virtual_cann/machine/hardware.cpp").read_text("utf-8")
    row = re.search(rf'{{"{soc}", \d+, (\d+), ([\d.e]+), \d+ \* kGiB, (\d+) \* kMiB, ([\d.]+)}}', text)
    assert row, f"{soc} is not in hardware.cpp"
    facts = int(row[1]), float(row[2]), int(row[3]) * 2**20, float(row[4])
    return {name: Chip(*facts, assumed) for name, assumed in rates.assumptions().items()}


class Times(NamedTuple):
    """The times of one call, in microseconds, under one assumption about the rates."""

    estimate: float
    launches: float  # of it, what the launches themselves cost
    traffic_bound: float
    vector_bound: float

    @property
    def over_bound(self) -> float:
        return (self.estimate - self.launches) / max(self.traffic_bound, self.vector_bound)


@dataclass(frozen=True)
class Figures:
    """The figures of one call. Traffic is over the bytes of the logits."""

    read: float
    written: float
    dma_bytes: float  # mean of an instruction
    repeats: float  # per element
    conflicts: float  # of UB banks: cycles per element
    busiest: float  # core, over the mean
    blocks: list[int]  # of each launch
    times: dict[str, Times]  # by assumption

    @property
    def table(self) -> Times:
        return self.times["table"]


@dataclass(frozen=True)
class Kernel:
    reads: int
    tile: int  # columns
    repeats: float  # per element
    operations: dict[str, float]  # repeats for 64 elements, by rate; the rest of `repeats` are reductions
    starts: int  # vector instructions of a tile, without reductions
    scalars: int  # the scalar unit's accesses of UB for a row
    # -- of a call
    call_starts: int  # vector instructions
    call_reads: int  # copies into UB that are waited for
    call_misses: int  # of the data cache


CHUNK = 8192  # elements of a reduction, in forward
CHUNK_STARTS = 9  # its vector instructions: four for the max and one to merge it, four for the sum
_FORWARD = {"simple": 2, "exp": 1}  # x - max, x - lse
_FORWARD_CALL = {"scalars": 8, "call_starts": 7, "call_reads": 1, "call_misses": 1}
_BACKWARD_CALL = {"scalars": 3, "call_starts": 8, "call_reads": 2, "call_misses": 1}
KERNELS = {
    ("forward", 4): Kernel(3, 47744, 0.080, _FORWARD, starts=3, **_FORWARD_CALL),
    ("forward", 2): Kernel(3, 23808, 0.145, _FORWARD | {"cast": 4}, starts=7, **_FORWARD_CALL),
    ("backward", 4): Kernel(1, 16128, 3 / 64, {"exp": 1, "simple": 1, "copy": 1}, starts=3, **_BACKWARD_CALL),
    ("backward", 2): Kernel(1, 24320, 4 / 64, {"exp": 1, "simple": 1, "cast": 2}, starts=4, **_BACKWARD_CALL),
}


@dataclass(frozen=True)
class Problem:
    kernel: Kernel
    rows: int
    classes: int
    element_bytes: int

    @property
    def row_bytes(self) -> int:
        return self.classes * self.element_bytes

    @property
    def tiles(self) -> int:
        return -(-self.classes // self.kernel.tile)

    @property
    def chunks(self) -> int:
        return -(-self.classes // CHUNK)

    def copies(self, on: Chip) -> float:
        """Cycles of a row."""
        reads, cores = self.kernel.reads, min(self.rows, on.cores)
        bytes_ = self.row_bytes + self.tiles * on.rates["short_copy"]
        once = bytes_ / on.share(cores, on.fits_l2(2 * self.rows * self.row_bytes))
        again = bytes_ / on.rates["dma_of_l2"] if cores * self.row_bytes <= on.l2_bytes else once
        return 2 * once + (reads - 1) * again + reads * self.tiles * on.rates["read_latency"]

    def vector(self, on: Chip) -> float:
        """Cycles of a row."""
        kernel = self.kernel
        reductions = kernel.repeats * 64 - sum(kernel.operations.values())
        operations = kernel.operations | ({"reduce": reductions} if kernel.reads > 1 else {})
        cycles = sum(on.rates[name] * times for name, times in operations.items())
        starts = kernel.starts * self.tiles + (CHUNK_STARTS * self.chunks if kernel.reads > 1 else 0)
        return cycles * -(-self.classes // 64) + starts * on.rates["vector_start"]

    def scalar(self, on: Chip) -> float:
        """Cycles of a row, without the data cache miss of its target: 8 rows share one."""
        sums = self.chunks if self.kernel.reads > 1 else 0
        return (self.kernel.scalars + sums) * on.rates["scalar_access"]

    def call(self, on: Chip) -> float:
        """Cycles of what a call does once, and of the data cache misses of its targets."""
        kernel, rows = self.kernel, self.rows_of_busiest(on)
        short = on.rates["short_copy"] / on.share(1, in_l2=True)
        return (
            kernel.call_starts * on.rates["vector_start"]
            + kernel.call_reads * (on.rates["read_latency"] + short)
            + (kernel.call_misses + -(-rows // 8)) * on.rates["cache_miss"]
        )

    def rows_of_busiest(self, on: Chip) -> int:
        return -(-self.rows // min(self.rows, on.cores))

    def without_waits(self, on: Chip) -> float:
        """Microseconds."""
        rows = self.rows_of_busiest(on)
        cycles = rows * (self.vector(on) + self.copies(on) + self.scalar(on)) + self.call(on)
        return on.launch(min(self.rows, on.cores)) + cycles / on.hertz * 1e6

    def waits(self, on: Chip) -> float:
        """Microseconds. A pass over a row waits as long in backward as in forward."""
        published = Problem(KERNELS["forward", 2], 1024, 1024, 2)
        unexplained = max(0, PUBLISHED - published.without_waits(on))
        of_pass = unexplained / (published.kernel.reads * published.rows_of_busiest(on))
        return of_pass * self.kernel.reads * self.rows_of_busiest(on)

    def times(self, on: Chip) -> Times:
        launch = on.launch(min(self.rows, on.cores))
        vector = self.rows_of_busiest(on) * self.vector(on) / on.hertz * 1e6
        moved = 2 * self.rows * self.row_bytes
        bound = moved / on.memory(on.fits_l2(moved)) * 1e6
        return Times(self.without_waits(on) + self.waits(on), launch, bound, vector)


def official(direction: str, rows: int, classes: int, element_bytes: int, soc: str) -> Figures:
    problem = Problem(KERNELS[direction, element_bytes], rows, classes, element_bytes)
    on = chips(soc)["table"]
    return Figures(
        read=problem.kernel.reads,
        written=1,
        dma_bytes=problem.row_bytes / problem.tiles,
        repeats=problem.kernel.repeats,
        conflicts=0,
        busiest=problem.rows_of_busiest(on) * on.cores / rows,
        blocks=[min(rows, on.cores)],
        times={name: problem.times(chip) for name, chip in chips(soc).items()},
    )
