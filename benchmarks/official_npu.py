# SPDX-License-Identifier: Apache-2.0
"""CANN's own CrossEntropyLoss and CrossEntropyLossGrad on an A2, costed from their documented structure.

They take a row at a time, on as many cores as there are rows, without double buffering: each tile is copied in, worked
on and copied out, one after the other. Forward reads the row three times (max, sum of exponentials, log_prob) and
writes log_prob; backward reads log_prob and writes the gradient. The second and third read hit the L2 where the rows
that are in work together fit it, and then move at what one core's DMA can do.

The rates are those that the virtual NPU charges our kernels, read from its sources, and a core has its share of HBM
here as there. What the structure leaves open counts as nothing: the waits between pipes, the scalar sums of every 8192
elements, bank conflicts, targets, the reduction over rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MACHINE = Path(__file__).resolve().parents[1] / "tests/virtual_cann/machine"


@dataclass(frozen=True)
class Chip:
    cores: int
    hertz: float
    l2_bytes: float
    rates: dict[str, float]  # k... of rates.h, and the vector classes by their names

    def share(self, rate: str, cores: int) -> float:
        """Bytes a cycle of one of the cores that are at work."""
        return min(self.rates["kDma"], self.rates[rate] / self.hertz / cores)

    def launch(self, blocks: int) -> float:
        """Microseconds before a launch begins, which grow with the cores that it takes."""
        return self.rates["kLaunchVector"] * min(1, blocks / self.cores)


@cache
def chip(soc: str) -> Chip:
    row = re.search(
        rf'{{"{soc}", \d+, (\d+), ([\d.e]+), \d+ \* kGiB, (\d+) \* kMiB}}', (MACHINE / "hardware.cpp").read_text()
    )
    assert row, f"{soc} is not in hardware.cpp"
    text = (MACHINE / "rates.h").read_text()
    rates = re.findall(r"Rate (k\w+) = {([\d.e]+),", text) + [
        (name, value) for value, name in re.findall(r'^ +{([\d.]+), "cycles/repeat", \w+, "(\w+)', text, re.MULTILINE)
    ]
    return Chip(int(row[1]), float(row[2]), int(row[3]) * 2**20, {name: float(value) for name, value in rates})


@dataclass(frozen=True)
class Figures:
    """Of one call. Traffic is over that of the logits; times are in microseconds."""

    read: float
    written: float
    dma_bytes: float  # mean of an instruction
    repeats: float  # per element
    conflicts: float  # of UB banks: cycles per element
    busiest: float  # core, over the mean
    estimate: float
    launches: float  # of it, what the launches themselves cost
    traffic_bound: float
    vector_bound: float

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


def official(direction: str, rows: int, classes: int, element_bytes: int, on: Chip) -> Figures:
    kernel = KERNELS[direction, element_bytes]
    cores = min(rows, on.cores)
    rows_of_busiest = -(-rows // cores)
    tiles = -(-classes // kernel.tile)
    row_bytes = classes * element_bytes

    of_hbm = row_bytes / on.share("kHbm", cores)
    of_l2 = row_bytes / on.rates["kDma"] if cores * row_bytes <= on.l2_bytes else of_hbm
    copies = 2 * of_hbm + (kernel.reads - 1) * of_l2 + kernel.reads * tiles * on.rates["kReadLatency"]

    reductions = kernel.repeats * 64 - sum(kernel.operations.values())
    operations = kernel.operations | ({"reduce": reductions} if direction == "forward" else {})
    cycles = sum(on.rates[name] * times for name, times in operations.items())
    vector = cycles * -(-classes // 64) + len(operations) * tiles * on.rates["kVectorStart"]

    microseconds = rows_of_busiest / on.hertz * 1e6
    launches = on.launch(cores)
    return Figures(
        read=kernel.reads,
        written=1,
        dma_bytes=row_bytes / tiles,
        repeats=kernel.repeats,
        conflicts=0,
        busiest=rows_of_busiest * on.cores / rows,
        estimate=launches + (copies + vector) * microseconds,
        launches=launches,
        traffic_bound=2 * rows * row_bytes / on.rates["kHbm"] * 1e6,
        vector_bound=vector * microseconds,
    )
