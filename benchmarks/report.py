# SPDX-License-Identifier: Apache-2.0
"""Measures everything, judges it, and writes it where people read it. ONE command makes all figures and pictures:

    python benchmarks/report.py                               # measures for some twenty minutes, and renders
    python benchmarks/report.py --from docs/performance.json  # renders what was measured
    python benchmarks/report.py --quick --into DIR            # a few cells, in copies of the pages: shows that it works

It writes docs/performance.json, the pictures in docs/img/, and what stands between markers in docs/performance.md and
README.md. Peers that are not installed are named there. Pictures need the extra [plot].
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import accuracy
import bars
import growth
import plots
import tables
import torch
from bars import cells_of
from results import ROOT, Results

from npu_ce_jit import bootstrap
from npu_ce_jit.bench import command
from npu_ce_jit.bench.cases import DTYPES, FORMS, FORWARD, STEP, Cell, Effort, Row, measure
from npu_ce_jit.bench.implementations import IMPLEMENTATIONS

PAGES = ("README.md", "docs/performance.md")
_CPU = torch.device("cpu")
_QUICK_CLASSES = 5000  # --quick runs the cells of growth that have at most the elements of 1024 rows of these


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="file", type=Path, metavar="FILE", help="render this, and measure nothing")
    parser.add_argument("--into", type=Path, default=ROOT, metavar="DIR", help="instead of this checkout")
    parser.add_argument("--quick", action="store_true", help="a few cells, in less than a minute; only with --into")
    parser.add_argument("--no-compile", action="store_true", help="leave out what torch.compile makes")
    arguments = parser.parse_args()
    into: Path = arguments.into
    if arguments.quick and into == ROOT:
        parser.error("what --quick measures is not for README: name a directory with --into DIR")
    if arguments.file:
        results = Results.load(arguments.file)
    else:
        results = measured(arguments.quick, not (arguments.quick or arguments.no_compile))
    (into / "docs" / "img").mkdir(parents=True, exist_ok=True)
    results.save(into / "docs" / "performance.json")
    results = Results.load(into / "docs" / "performance.json")  # rounded, so that pages show the file's numbers
    render(results, into)
    judged = all_verdicts(results)
    for verdict in judged:
        print(f"{verdict.word:12} {verdict.what}: {verdict.figure or '-'}, bar {verdict.bar}")
    print("\n".join(command.absent(results.rows)))


def measured(quick: bool, with_compile: bool) -> Results:
    began, load = time.perf_counter(), os.getloadavg()[0]
    session = bootstrap.run()
    if session.backend != "cpp":
        raise SystemExit(f"there are no compiled kernels to measure: {session.cpu.problem}")
    rows: list[Row] = []
    planned = quick_plan() if quick else plan()
    for number, (cell, everybody) in enumerate(planned, 1):
        implementations = [one for one in IMPLEMENTATIONS[cell.loss] if everybody or one.ours]
        found = measure(cell, implementations, _CPU, Effort(9, 4.0, with_compile))
        print(
            f"[{number}/{len(planned)}, {time.perf_counter() - began:.0f} s]{command.text_of(cell, found)}",
            file=sys.stderr,
        )
        rows += found
    about = {
        **command.about(_CPU),
        "load before": round(load, 1),
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "quick": quick,
    }
    return Results(about, rows, accuracy.worst_elements())


def plan() -> list[tuple[Cell, bool]]:
    """Every cell, and whether peers run in it."""
    large = bars.GRID + bars.UNLISTED
    cells = [
        *cells_of("cross_entropy", FORMS, DTYPES, large),
        *cells_of("cross_entropy", (STEP,), DTYPES, bars.SMALL_OR_FLAT),
        *cells_of("cross_entropy", (STEP,), ("float32",), bars.TINY),
        *cells_of("drop-in", (STEP,), DTYPES, large + bars.SMALL_OR_FLAT),
        *(cell for form in (STEP, FORWARD) for case in bars.LINEAR for cell in cells_of("linear", (form,), *case)),
    ]
    return [*((cell, True) for cell in cells), *growing()]


def quick_plan() -> list[tuple[Cell, bool]]:
    cells = [
        *cells_of("cross_entropy", FORMS, ("float32",), bars.UNLISTED[:1]),
        *cells_of("cross_entropy", (STEP,), ("bfloat16",), bars.SMALL_OR_FLAT),
        *cells_of("drop-in", (STEP,), ("float32",), bars.UNLISTED[:1]),
    ]
    grown = [(cell, everybody) for cell, everybody in growing() if cell.rows * cell.classes <= 1024 * _QUICK_CLASSES]
    return [*((cell, True) for cell in cells), *grown]


def growing() -> list[tuple[Cell, bool]]:
    """The cells of the growth curves, and whether peers run in each: they are drawn over the classes, with backward."""
    sweeps = dict.fromkeys((line.loss, line.form, line.over) for line in growth.LINES)
    return [
        (cell, form == STEP and over == "classes" and loss != "drop-in")
        for loss, form, over in sweeps
        for cell in growth.cells(loss, form, over)
    ]


def all_verdicts(results: Results) -> list[bars.Verdict]:
    return bars.verdicts(results) + growth.verdicts(results) + accuracy.verdicts(results.accuracy)


def render(results: Results, into: Path) -> None:
    blocks = tables.blocks(results, all_verdicts(results))
    for page in PAGES:
        if into != ROOT:
            shutil.copy(ROOT / page, into / page)
        file = into / page
        file.write_text(tables.filled(file.read_text("utf-8"), blocks, page), "utf-8")
    for name, problem in plots.draw(results, into / "docs" / "img").items():
        print(f"{name}: not drawn: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
