# SPDX-License-Identifier: Apache-2.0
"""CANN's own CrossEntropyLoss and CrossEntropyLossGrad on an A2, costed from their documented structure.

They take a row at a time, on as many cores as there are rows, without double buffering: each tile is copied in, worked
on and copied out, one after the other. Forward reads the row three times (max, sum of exponentials, log_prob) and
writes log_prob; backward reads log_prob and writes the gradient. The second and third read hit the L2 where the rows
that are in work together fit it, and then move at what one core's DMA can do, however many do.

The rates are those that the virtual NPU charges our kernels, at the same ends of their ranges, and a core has its share
of the memory here as there. What is not known of it counts for it: forward waits for all cores (SyncAll), which needs a
mixed kernel, and is charged what a kernel of vector cores costs to launch; it finds what it reads once in the L2 where
the logits and what it writes would fit, however often it reads them. What the structure leaves open counts as nothing:
the waits between pipes, the scalar sums of every 8192 elements, bank conflicts, targets, the reduction over rows. Only
where all rates are slow a row has ROW_WAITS for them.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from virtual_cann import rates  # noqa: E402

# Microseconds. A published timing of 1024 x 1024 halves, 44.6 us, is 16 to 22 us more for 22 rows than all else costs.
ROW_WAITS = 1.0


@dataclass(frozen=True)
class Chip:
    cores: int
    hertz: float
    l2_bytes: float
    hbm_share: float
    rates: dict[str, float]

    def fits_l2(self, moved: float) -> bool:
        return moved <= self.l2_bytes / 2

    def share(self, cores: int, in_l2: bool) -> float:
        """Bytes a cycle of one of the cores that are at work."""
        memory = self.rates["l2"] if in_l2 else self.rates["hbm"] * self.hbm_share
        return min(self.rates["dma_of_l2" if in_l2 else "dma"], memory / self.hertz / cores)

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


@dataclass(frozen=True)
class Figures:
    """Of one call. Traffic is over that of the logits; times are in microseconds."""

    read: float
    written: float
    dma_bytes: float  # mean of an instruction
    repeats: float  # per element
    conflicts: float  # of UB banks: cycles per element
    busiest: float  # core, over the mean
    estimates: dict[str, float]  # by what is assumed of the rates
    launches: float  # of the table's estimate, what the launches themselves cost
    launch_blocks: list[int]  # of each launch
    traffic_bound: float  # by the table
    vector_bound: float

    @property
    def estimate(self) -> float:
        return self.estimates["table"]

    @property
    def over_bound(self) -> float:
        return (self.estimate - self.launches) / max(self.traffic_bound, self.vector_bound)


@dataclass(frozen=True)
class Kernel:
    reads: int
    tile: int  # columns
    repeats: float  # per element
    operations: dict[str, float]  # of a row's 64 elements, but for reductions: those are what is left of the repeats


_FORWARD = {"simple": 2, "exp": 1}  # x - max, x - lse
KERNELS = {
    ("forward", 4): Kernel(3, 47744, 0.080, _FORWARD),
    ("forward", 2): Kernel(3, 23808, 0.145, _FORWARD | {"cast": 4}),
    ("backward", 4): Kernel(1, 16128, 3 / 64, {"exp": 1, "simple": 1, "copy": 1}),
    ("backward", 2): Kernel(1, 24320, 4 / 64, {"exp": 1, "simple": 1, "cast": 2}),
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
        return cycles * -(-self.classes // 64) + len(operations) * self.tiles * on.rates["vector_start"]

    def estimate(self, on: Chip, row_waits: float) -> float:
        cores = min(self.rows, on.cores)
        row = (self.copies(on) + self.vector(on)) / on.hertz * 1e6 + row_waits
        return on.launch(cores) + -(-self.rows // cores) * row


def official(direction: str, rows: int, classes: int, element_bytes: int, soc: str) -> Figures:
    problem = Problem(KERNELS[direction, element_bytes], rows, classes, element_bytes)
    on = chips(soc)["table"]
    cores = min(rows, on.cores)
    rows_of_busiest = -(-rows // cores)
    logits = rows * problem.row_bytes
    memory = on.rates["l2"] if on.fits_l2(2 * logits) else on.rates["hbm"] * on.hbm_share
    return Figures(
        read=problem.kernel.reads,
        written=1,
        dma_bytes=problem.row_bytes / problem.tiles,
        repeats=problem.kernel.repeats,
        conflicts=0,
        busiest=rows_of_busiest * on.cores / rows,
        estimates={
            name: problem.estimate(chip, ROW_WAITS if name == "slow" else 0) for name, chip in chips(soc).items()
        },
        launches=on.launch(cores),
        launch_blocks=[cores],
        traffic_bound=2 * logits / memory * 1e6,
        vector_bound=problem.vector(on) * rows_of_busiest / on.hertz * 1e6,
    )
