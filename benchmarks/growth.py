# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with rows and with classes, over four decades; the slopes of the upper two, and their bars.

A slope is that of the least-squares line through the logarithms: 1 where a figure is proportional to the size, 0 where
it does not grow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from bars import Verdict
from results import Results

from npu_ce_jit.bench.cases import FORWARD, STEP, Cell
from npu_ce_jit.bench.implementations import CROSS_ENTROPY, DROP_IN, IN_PLACE, LINEAR

CLASSES = (16, 50, 160, 500, 1600, 5000, 16000, 50000, 160000)
ROWS = (1, 3, 10, 32, 100, 316, 1000, 3162, 10000)
_ROWS_OF_CLASSES, _CLASSES_OF_ROWS = 1024, 8080
_HIDDEN_ROWS, _HIDDEN_FEATURES = 512, 256
_DECADES = 2  # at the large end, for the slope


class Line(NamedTuple):
    """What grows, with what, and with which power it should."""

    loss: str
    form: str
    implementation: str
    over: str  # "classes" or "rows"
    figure: str
    slope: float
    tolerance: float = 0.1


LINES = (
    *(
        Line(loss, form, name, over, "milliseconds", 1.0)
        for over in ("classes", "rows")
        for loss, form, name in (
            ("cross_entropy", FORWARD, CROSS_ENTROPY),
            ("cross_entropy", STEP, CROSS_ENTROPY),
            ("cross_entropy", STEP, IN_PLACE),
        )
    ),
    Line("drop-in", STEP, DROP_IN, "classes", "milliseconds", 1.0),
    Line("linear", STEP, LINEAR, "classes", "milliseconds", 1.0),
    Line("cross_entropy", FORWARD, CROSS_ENTROPY, "classes", "peak bytes", 0.0, 0.01),
    Line("cross_entropy", FORWARD, CROSS_ENTROPY, "rows", "peak bytes", 1.0),
)


def cells(loss: str, form: str, over: str) -> list[Cell]:
    if loss == "linear":
        return [Cell(loss, form, "float32", _HIDDEN_ROWS, classes, _HIDDEN_FEATURES) for classes in CLASSES]
    if over == "classes":
        return [Cell(loss, form, "float32", _ROWS_OF_CLASSES, classes) for classes in CLASSES]
    return [Cell(loss, form, "float32", rows, _CLASSES_OF_ROWS) for rows in ROWS]


def points(results: Results, cells: list[Cell], implementation: str, figure: str, over: str) -> list[tuple[int, float]]:
    """(classes or rows, figure) of the cells in which the implementation ran."""
    found = []
    for cell in cells:
        size = 1
        if figure == "peak bytes":
            size = cell.rows * cell.classes * 4  # of the logits; all sweeps are in float32
        value = results.number(cell, implementation, "peak over logits" if figure == "peak bytes" else figure)
        if value is not None:
            found.append((getattr(cell, over), value * size))
    return found


def slope(points: list[tuple[int, float]]) -> float | None:
    """The slope over the large end; None where its last point was not measured."""
    if not points or points[-1][0] not in (CLASSES[-1], ROWS[-1]):
        return None
    upper = [(math.log(x), math.log(y)) for x, y in points if x * 10**_DECADES >= points[-1][0]]
    middle_x, middle_y = (sum(values) / len(upper) for values in zip(*upper, strict=True))
    return sum((x - middle_x) * (y - middle_y) for x, y in upper) / sum((x - middle_x) ** 2 for x, _ in upper)


def verdicts(results: Results) -> list[Verdict]:
    found = []
    for line in LINES:
        swept = cells(line.loss, line.form, line.over)
        measured = slope(points(results, swept, line.implementation, line.figure, line.over))
        unit = "time" if line.figure == "milliseconds" else "memory"
        what = f"{line.implementation}, {line.form}: growth of {unit} with {line.over}, slope"
        met = None if measured is None else abs(measured - line.slope) <= line.tolerance
        figure = "" if measured is None else f"{measured:.2f}"
        found.append(Verdict(what, f"{line.slope:g} +- {line.tolerance:g}", figure, met))
    return found
