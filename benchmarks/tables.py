# SPDX-License-Identifier: Apache-2.0
"""The Markdown of the pages: a block stands between two comments, and only what is between them is written."""

from __future__ import annotations

import re
from collections.abc import Iterable

import bars
from bars import Verdict, cells_of
from results import Results

from npu_ce_jit.bench import command
from npu_ce_jit.bench import implementations as who
from npu_ce_jit.bench.cases import DTYPES, FORWARD, STEP, Cell

_LARGE = bars.GRID + bars.UNLISTED
_QUICK = "Of a few cells (`--quick`): to see that it works, and for nothing else."
_BLOCK = re.compile(r"(<!-- (\w+): .*? -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, blocks: dict[str, str], name: str) -> str:
    """The page with each block between its markers; exits where it marks a block that does not exist."""
    marked = [match[2] for match in _BLOCK.finditer(page)]
    if not marked:
        raise SystemExit(f"{name} has no place for figures: expected <!-- name: ... --> and <!-- end --> around each")
    unknown = sorted(set(marked) - set(blocks))
    if unknown:
        raise SystemExit(f"{name} marks what nothing makes: {', '.join(unknown)}; there are {', '.join(blocks)}")
    return _BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]}\n{match[3]}", page)


def blocks(results: Results, verdicts: list[Verdict]) -> dict[str, str]:
    """The blocks, by the names that a page can mark."""
    return {
        "summary": _summary(results, verdicts),
        "machine": _machine(results),
        "bars": table(
            ("what", "bar", "figure", ""),
            ((one.what, one.bar, one.figure, f"**{one.word}**" if one.met is False else one.word) for one in verdicts),
        ),
        "cross_entropy": _of_cross_entropy(results, STEP, (*_LARGE, *bars.SMALL_OR_FLAT, *bars.TINY)),
        "cross_entropy_forward": _of_cross_entropy(results, FORWARD, _LARGE),
        "drop_in": _drop_in(results),
        "linear": _linear(results, STEP),
        "linear_forward": _linear(results, FORWARD),
        "slower": _slower(results),
        "absent": "\n".join(f"* {line}" for line in command.absent(results.rows)) or "Everybody ran.",
    }


def table(titles: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    titles = list(titles)
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}x" if value < 9.95 else f"{value:.0f}x"


def _number(value: float | None, pattern: str) -> str:
    return "" if value is None else format(value, pattern)


def _peaks(results: Results, cell: Cell, names: Iterable[str]) -> list[str]:
    return [_number(results.number(cell, name, "peak over logits"), ".2f") for name in names]


def _machine(results: Results) -> str:
    about = results.about
    versions = ", ".join(f"{name} {about[name]}" for name in ("npu_ce_jit", "torch", "python"))
    peers = ", ".join(f"{name} {about[name] or 'not installed'}" for name in command.PEER_PACKAGES)
    text = (
        f"{about['device']}; {about['date']}; {versions}; {peers}. Kernels: `{about['kernels']}`. The run took "
        f"{about['minutes']} minutes; the load before it was {about['load before']}."
    )
    return f"**{_QUICK}** {text}" if about["quick"] else text


def _slower(results: Results) -> str:
    """Every cell in which a peer was faster; the least favourable first."""
    slower = [
        (times, row, peer)
        for row in results.rows
        for peer, times in row.get("times as fast as", {}).items()
        if round(times, 2) < 1
    ]
    if not slower:
        return "Nothing was slower."
    titles = ("what", "form", "shape", "dtype", "peer", "times as fast")
    return table(
        titles,
        (
            (
                row["implementation"],
                row["form"],
                Cell(*(row[field] for field in Cell._fields)).shape,
                row["dtype"],
                peer,
                f"{times:.2f}",
            )
            for times, row, peer in sorted(slower, key=lambda found: found[0])
        ),
    )


def _summary(results: Results, verdicts: list[Verdict]) -> str:
    about = results.about
    met, missed = (sum(one.met is which for one in verdicts) for which in (True, False))
    where = f"{about['device']}, torch {about['torch']}, {about['date']}"
    how_many = f"{met} of {met + missed} performance targets (bars) met"
    errors = "; ".join(f"{error:.2%}, {kind}" for kind, error in results.accuracy.items())
    parts = (
        f"**{_QUICK}**" if about["quick"] else "",
        f"{where}. {how_many}: [docs/performance.md](docs/performance.md) has them, and what is slower than a peer.",
        _summary_of_logits(results),
        _summary_of_hidden_states(results),
        f"Worst element of a bfloat16 gradient, against float64: {errors}.",
    )
    return "\n\n".join(part for part in parts if part)


def _summary_of_logits(results: Results) -> str:
    rows = []
    for cell in cells_of("cross_entropy", (STEP,), ("float32", "bfloat16"), (*bars.GRID, *bars.SMALL_OR_FLAT)):
        forward, drop_in = cell._replace(form=FORWARD), cell._replace(loss="drop-in")
        if results.row(cell, who.CROSS_ENTROPY):
            times = (
                results.times_as_fast(cell, who.CROSS_ENTROPY, who.EAGER),
                results.times_as_fast(cell, who.CROSS_ENTROPY, who.COMPILED),
                results.times_as_fast(forward, who.CROSS_ENTROPY, who.EAGER),
                results.times_as_fast(drop_in, who.DROP_IN, who.TWO_STEPS),
            )
            rows.append(
                (
                    cell.shape,
                    cell.dtype,
                    *map(_times, times),
                    *_peaks(results, cell, (who.CROSS_ENTROPY, who.IN_PLACE, who.EAGER)),
                )
            )
    titles = (
        "logits",
        "dtype",
        f"`{who.CROSS_ENTROPY}` vs {who.EAGER}",
        f"vs {who.COMPILED}",
        f"forward only, vs {who.EAGER}",
        f"`{who.DROP_IN}` vs {who.TWO_STEPS}",
    )
    return table((*titles, *_memory(who.CROSS_ENTROPY, who.IN_PLACE, who.EAGER)), rows)


def _summary_of_hidden_states(results: Results) -> str:
    names = (who.LINEAR, who.LINEAR_EAGER, who.LINEAR_TORCH)
    rows = [
        (
            cell.shape,
            cell.dtype,
            *(_times(results.times_as_fast(cell, who.LINEAR, peer)) for peer in names[1:]),
            *_peaks(results, cell, names),
        )
        for case in bars.LINEAR
        for cell in cells_of("linear", (STEP,), *case)
        if results.row(cell, who.LINEAR)
    ]
    titles = ("N x H x V", "dtype", f"`{who.LINEAR}` vs {who.LINEAR_EAGER}", f"vs {who.LINEAR_TORCH}")
    return table((*titles, *_memory(*names)), rows)


def _memory(*names: str) -> list[str]:
    return [f"memory, x logits: {name}" for name in names]


def _of_cross_entropy(results: Results, form: str, shapes: bars.Shapes) -> str:
    names = (who.CROSS_ENTROPY, *([who.IN_PLACE] if form == STEP else []), who.EAGER, who.COMPILED)
    return _cells(results, cells_of("cross_entropy", (form,), DTYPES, shapes), names)


def _drop_in(results: Results) -> str:
    cells = cells_of("drop-in", (STEP,), DTYPES, _LARGE + bars.SMALL_OR_FLAT)
    return _cells(results, cells, (who.DROP_IN, who.TWO_STEPS, who.TWO_STEPS_COMPILED))


def _linear(results: Results, form: str) -> str:
    names = (
        who.LINEAR,
        who.LINEAR + who.FOR_MEMORY,
        who.LINEAR_EAGER,
        who.LINEAR_TORCH,
        who.LINEAR_TORCH + who.FOR_MEMORY,
        who.APPLE,
    )
    return _cells(results, [cell for case in bars.LINEAR for cell in cells_of("linear", (form,), *case)], names)


def _cells(results: Results, cells: list[Cell], names: tuple[str, ...]) -> str:
    """A line for each cell: our time, how many times slower the others are, and the memory of each."""
    ours, *others = names
    timed = [name for name in others if not name.endswith(who.FOR_MEMORY)]
    rows = [
        [
            cell.shape,
            cell.dtype,
            _number(row["milliseconds"], ".3g"),
            _number(row.get("GB/s", row.get("GFLOP/s")), ".1f"),
            _number(row["share of the limit"], ".0%"),
            *(
                _number(results.number(cell, name, "share of the limit"), ".0%")
                if name == who.IN_PLACE
                else _times(results.times_as_fast(cell, ours, name))
                for name in timed
            ),
            *_peaks(results, cell, names),
        ]
        for cell in cells
        if (row := results.row(cell, ours))
    ]
    unit, shape = ("GFLOP/s", "N x H x V") if ours == who.LINEAR else ("GB/s", "logits")
    columns = [f"share, {name}" if name == who.IN_PLACE else f"vs {name}" for name in timed]
    return table((shape, "dtype", "ms", unit, "share of limit", *columns, *(f"memory: {name}" for name in names)), rows)
