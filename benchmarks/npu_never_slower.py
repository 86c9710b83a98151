# SPDX-License-Identifier: Apache-2.0
"""Whether the NPU kernels are anywhere slower than CANN's own operator, whatever the rates are.

    python benchmarks/npu_never_slower.py [--json] [4x131072 ...]

Each cell is estimated by the table of rates, with all rates at their fast and at their slow ends, and with each range
alone at either end, for both sides alike (official_npu.py); the bar is 1 for the worst of these ratios. CANN's forward
always writes log_prob, so ours has to be as fast with it and without.

Where a launch has more than MOST_ELEMENTS elements, only every nth block runs. The blocks' work differs by one unit at
most, and no block has more than the last.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

from npu_call import CHIP, DTYPES, FORMS, Case, Measured, measure

ROWS = (1, 4, 16, 48, 1024, 4096)
CLASSES = (1000, 8080, 32000, 131072, 151936)
MOST_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Cell:
    measured: Measured

    @property
    def ratios(self) -> dict[str, float]:
        """Ours over CANN's."""
        official = self.measured.official.times
        return {name: ours.estimate / official[name].estimate for name, ours in self.measured.ours.times.items()}

    @property
    def worst(self) -> str:
        return max(self.ratios, key=lambda name: self.ratios[name])

    @property
    def met(self) -> bool:
        return self.ratios[self.worst] <= 1

    @property
    def name(self) -> str:
        case = self.measured.case
        return f"{case.form}, {case.dtype} {case.rows}x{case.classes}"


def case_of(form: str, dtype: str, rows: int, classes: int) -> Case:
    every = min(CHIP.cores, math.ceil(rows * classes / MOST_ELEMENTS))
    return Case(form, dtype, rows, classes, every_nth_block=every)


def line(cell: Cell) -> str:
    ours, official = cell.measured.ours, cell.measured.official
    ends = ("table", "fast", "slow", cell.worst)
    pairs = "  ".join(f"{ours.times[name].estimate:8.1f}{official.times[name].estimate:8.1f}" for name in ends)
    lost = sum(ratio > 1 for ratio in cell.ratios.values())
    verdict = f"MISSED at {lost} ends" if lost else "met"
    return f"{cell.name:38} {len(ours.blocks)} {pairs}  {cell.ratios[cell.worst]:6.3f} {cell.worst:20} {verdict}"


def as_json(cell: Cell) -> dict[str, Any]:
    sides = {"ours": cell.measured.ours, "official": cell.measured.official}
    estimates = {
        side: {name: times.estimate for name, times in figures.times.items()} for side, figures in sides.items()
    }
    return cell.measured.case._asdict() | estimates | {"blocks": cell.measured.ours.blocks, "met": cell.met}


def shape_of(text: str) -> tuple[int, int]:
    rows, classes = map(int, text.split("x"))
    return rows, classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", type=shape_of, default=[(n, c) for n in ROWS for c in CLASSES])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    cells = list(
        map(Cell, measure([case_of(f, d, *shape) for f in FORMS for d in DTYPES for shape in arguments.shapes]))
    )
    if arguments.json:
        print(json.dumps(list(map(as_json, cells)), indent=2))
    else:
        print("microseconds, ours and CANN's: by the table, all rates fast, all slow, and at the worst of all ends")
        for cell in cells:
            print(line(cell))
    if missed := [cell for cell in cells if not cell.met]:
        sys.exit(f"{len(missed)} of {len(cells)} cells are slower than CANN's at some end")


if __name__ == "__main__":
    main()
