# SPDX-License-Identifier: Apache-2.0
"""The performance targets (bars), and whether they are met. A new bar is a row of BARS.

The bars of large shapes also hold at unlisted shapes, of like size, for which nothing was tuned: a kernel that is fast
only where it was measured is not fast.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

from results import Results

from npu_ce_jit.bench import implementations as who
from npu_ce_jit.bench.cases import DTYPES, FORWARD, STEP, Cell

# Rows and classes; of hidden states, their features too.
Shapes = tuple[tuple[int, ...], ...]
GRID: Shapes = ((4096, 8080), (2048, 32000), (1024, 128256))
UNLISTED: Shapes = ((3313, 9991), (977, 67001))
SMALL_OR_FLAT: Shapes = ((65536, 10), (8, 152064))
TINY: Shapes = ((4, 8),)
LINEAR_GRID: Shapes = ((2048, 32000, 1024),)
LINEAR_UNLISTED: Shapes = ((1021, 17011, 509), (2053, 9001, 385))
# With few features: a CPU without instructions for bfloat16 takes minutes for a peer's products at the shapes above.
LINEAR_NARROW: Shapes = ((2048, 32000, 32), (1021, 17011, 61))
BOTH_GRIDS = {"grid": GRID, "unlisted": UNLISTED}
BOTH_LINEAR = {"grid": LINEAR_GRID, "unlisted": LINEAR_UNLISTED}
NARROW_LINEAR = {"few features": LINEAR_NARROW}
# In the order in which they are shown: dtypes, and their shapes.
LINEAR = ((("float32",), LINEAR_GRID + LINEAR_UNLISTED), (("bfloat16",), LINEAR_NARROW))
HALVES = ("bfloat16", "float16")

Figure = Callable[[Results, Cell, str], float | None]


class Bar(NamedTuple):
    loss: str
    form: str
    ours: str
    figure: Figure
    says: str  # what the figure is
    where: dict[str, Shapes]
    median: float | None = None  # over the cells
    worst: float | None = None  # of all cells
    dtypes: tuple[str, ...] = DTYPES
    at_most: bool = False


class Verdict(NamedTuple):
    what: str
    bar: str
    figure: str
    met: bool | None  # None where nothing was measured

    @property
    def word(self) -> str:
        return "not measured" if self.met is None else "met" if self.met else "MISSED"


def _faster(peer: str) -> tuple[Figure, str]:
    return lambda results, cell, ours: results.times_as_fast(cell, ours, peer), f"times as fast as {peer}"


def _less_memory(peer: str) -> tuple[Figure, str]:
    def figure(results: Results, cell: Cell, ours: str) -> float | None:
        peaks = [results.number(cell, name, "peak over logits") for name in (peer, ours)]
        return None if None in peaks else peaks[0] / peaks[1]

    return figure, f"times less memory than {peer}"


def _over_the_limit(results: Results, cell: Cell, ours: str) -> float | None:
    share = results.number(cell, ours, "share of the limit")
    return None if share is None else 1 / share


def _peak(results: Results, cell: Cell, ours: str) -> float | None:
    return results.number(cell, ours, "peak over logits")


_COPIES = (_over_the_limit, "time over that of 1.5 copy_ of the logits")
_PEAK = (_peak, "peak memory over the logits'")

BARS = (
    Bar("cross_entropy", STEP, who.CROSS_ENTROPY, *_faster(who.EAGER), BOTH_GRIDS, median=2.5, worst=1.8),
    Bar("cross_entropy", STEP, who.CROSS_ENTROPY, *_faster(who.COMPILED), BOTH_GRIDS, median=1.4, worst=1.1),
    Bar("cross_entropy", FORWARD, who.CROSS_ENTROPY, *_faster(who.EAGER), BOTH_GRIDS, median=3.5),
    Bar("cross_entropy", FORWARD, who.CROSS_ENTROPY, *_faster(who.COMPILED), BOTH_GRIDS, median=1.4),
    Bar("cross_entropy", STEP, who.CROSS_ENTROPY, *_faster(who.EAGER), {"small or flat": SMALL_OR_FLAT}, worst=1.0),
    Bar("cross_entropy", STEP, who.CROSS_ENTROPY, *_faster(who.COMPILED), {"small or flat": SMALL_OR_FLAT}, worst=1.0),
    Bar(
        "cross_entropy", STEP, who.CROSS_ENTROPY, *_faster(who.EAGER), {"4 x 8": TINY}, worst=0.25, dtypes=("float32",)
    ),
    Bar("cross_entropy", STEP, who.IN_PLACE, *_COPIES, BOTH_GRIDS, worst=1.3, dtypes=("float32",), at_most=True),
    Bar("cross_entropy", STEP, who.IN_PLACE, *_COPIES, BOTH_GRIDS, worst=2.0, dtypes=HALVES, at_most=True),
    Bar(
        "drop-in", STEP, who.DROP_IN, *_faster(who.TWO_STEPS_COMPILED), {"grid": GRID[:1], "unlisted": UNLISTED},
        worst=2.5,
    ),
    Bar("drop-in", STEP, who.DROP_IN, *_faster(who.TWO_STEPS), BOTH_GRIDS, worst=1.4),
    *(
        bar
        for dtypes, where, faster, smaller in (
            (("float32",), BOTH_LINEAR, 1.1, 3.5),
            (("bfloat16",), NARROW_LINEAR, 1.0, 2.0),
        )
        for bar in (
            Bar("linear", STEP, who.LINEAR, *_faster(who.LINEAR_EAGER), where, worst=faster, dtypes=dtypes),
            Bar("linear", STEP, who.LINEAR + who.FOR_TIME, *_faster(who.LINEAR_TORCH), where, worst=1.0, dtypes=dtypes),
            Bar("linear", STEP, who.LINEAR, *_less_memory(who.LINEAR_EAGER), where, worst=smaller, dtypes=dtypes),
            Bar(
                "linear", STEP, who.LINEAR + who.FOR_MEMORY, *_less_memory(who.LINEAR_TORCH + who.FOR_MEMORY), where,
                worst=1.0, dtypes=dtypes,
            ),
        )
    ),
    Bar("cross_entropy", FORWARD, who.CROSS_ENTROPY, *_PEAK, BOTH_GRIDS, worst=0.01, at_most=True),
    Bar("cross_entropy", STEP, who.CROSS_ENTROPY, *_PEAK, BOTH_GRIDS, worst=1.05, at_most=True),
    Bar("cross_entropy", STEP, who.IN_PLACE, *_PEAK, BOTH_GRIDS, worst=0.1, at_most=True),
    Bar("drop-in", STEP, who.DROP_IN, *_PEAK, BOTH_GRIDS, worst=2.05, at_most=True),
)  # fmt: skip


def cells_of(loss: str, forms: Iterable[str], dtypes: Iterable[str], shapes: Iterable[tuple[int, ...]]) -> list[Cell]:
    """By shape, then dtype, then form."""
    dtypes, forms = tuple(dtypes), tuple(forms)
    return [Cell(loss, form, dtype, *shape) for shape in shapes for dtype in dtypes for form in forms]


def verdicts(results: Results) -> list[Verdict]:
    return [
        verdict
        for bar in BARS
        for where, shapes in bar.where.items()
        for verdict in _judged(bar, where, shapes, results)
    ]


def _judged(bar: Bar, where: str, shapes: Shapes, results: Results) -> list[Verdict]:
    figures = {
        cell: figure
        for cell in cells_of(bar.loss, (bar.form,), bar.dtypes, shapes)
        if (figure := bar.figure(results, cell, bar.ours)) is not None
    }
    dtypes = "" if bar.dtypes == DTYPES else f", {' and '.join(bar.dtypes)}"
    what = f"{bar.ours}, {bar.form}: {bar.says} ({where}{dtypes})"
    sign = "<=" if bar.at_most else ">="
    asked = {"median": bar.median, "every cell": bar.worst}
    found = []
    for which, limit in asked.items():
        if limit is None:
            continue
        if not figures:
            found.append(Verdict(what, f"{which} {sign} {limit:g}", "", None))
            continue
        worst = (max if bar.at_most else min)(figures, key=lambda cell: figures[cell])
        value = statistics.median(figures.values()) if which == "median" else figures[worst]
        # The number is judged as it is shown, rounded.
        met = round(value, 2) <= limit if bar.at_most else round(value, 2) >= limit
        figure = f"{value:.2f}" if which == "median" else f"{value:.2f} at {worst.shape} {worst.dtype}"
        found.append(Verdict(what, f"{which} {sign} {limit:g}", figure, met))
    return found
