# SPDX-License-Identifier: Apache-2.0
"""benchmarks/report.py: what it judges and writes, with invented figures; nothing is timed."""

from __future__ import annotations

import importlib
import re
import sys

import pytest
from locations import CHECKOUT
from probes import needs_matplotlib

from npu_ce_jit.bench.cases import FORWARD, LIMIT, STEP, Cell
from npu_ce_jit.bench.implementations import COMPILED, CROSS_ENTROPY, EAGER, IMPLEMENTATIONS, IN_PLACE, LINEAR

if not (CHECKOUT / "benchmarks").is_dir():
    pytest.skip("the package under test is installed, not a checkout", allow_module_level=True)
report = importlib.import_module("report")
bars, growth, plots, tables, Results = report.bars, report.growth, report.plots, report.tables, report.Results

ABOUT = {
    "date": "2026-01-02 03:04 UTC", "device": "a made-up machine", "kernels": "none", "npu_ce_jit": "0", "torch": "0",
    "python": "3", "cut-cross-entropy": None, "liger-kernel": "9.9", "triton": None, "load before": 0.0, "minutes": 0.0,
    "quick": False,
}  # fmt: skip


def rows_of(cell: Cell, everybody: bool = True, ratio: float = 2.0, absent: tuple[str, ...] = ()) -> list[dict]:
    """Ours take 1 ns for each element of the logits, twice the limit's time; peers take `ratio` times that."""
    own = cell.rows * cell.classes * 1e-6
    peers = [one.name for one in IMPLEMENTATIONS[cell.loss] if not one.ours and one.timed and one.name not in absent]
    rows = []
    for one in IMPLEMENTATIONS[cell.loss]:
        row = {**cell._asdict(), "implementation": one.name, "ours": one.ours}
        if one.name in absent:
            row["not run"] = "ModuleNotFoundError: not here"
        else:
            row |= {"peak over logits": 1.0 if one.ours else 3.0, "value": 1.0, "GB/s": 5.0, "share of the limit": 0.5}
            row["milliseconds"] = own if one.ours else ratio * own
            if one.ours:
                row["times as fast as"] = dict.fromkeys(peers, ratio)
        if one.ours or everybody:
            rows.append(row)
    return [*rows, {**cell._asdict(), "implementation": LIMIT, "ours": False, "milliseconds": own / 2, "GB/s": 10.0}]


def results_of(rows: list[dict]) -> Results:
    return Results(ABOUT, rows, {"ordinary rows": 0.0039})


def whole(**kind) -> Results:
    return results_of([row for cell, everybody in report.plan() for row in rows_of(cell, everybody, **kind)])


def verdicts(results: Results, what: str) -> dict[str, bool | None]:
    return {one.bar: one.met for one in bars.verdicts(results) if one.what == what}


def test_a_bar_is_judged_by_the_median_and_by_the_worst_cell():
    what = f"{CROSS_ENTROPY}, {STEP}: times as fast as {EAGER} (grid)"
    assert verdicts(whole(ratio=2.5), what) == {"median >= 2.5": True, "every cell >= 1.8": True}
    assert verdicts(whole(ratio=2.4), what) == {"median >= 2.5": False, "every cell >= 1.8": True}
    fast = whole(ratio=9.0)
    slow_cell = Cell("cross_entropy", STEP, "float16", 2048, 32000)
    slow_row = fast.row(slow_cell, CROSS_ENTROPY)
    slow_row["times as fast as"][EAGER] = 1.7
    assert verdicts(fast, what) == {"median >= 2.5": True, "every cell >= 1.8": False}
    (reported,) = (one.figure for one in bars.verdicts(fast) if one.what == what and one.met is False)
    assert reported == "1.70 at 2048 x 32000 float16"


def test_a_bar_of_a_limit_is_judged_by_what_is_over_it():
    what = f"{IN_PLACE}, {STEP}: time over that of 1.5 copy_ of the logits (grid, %s)"
    assert verdicts(whole(), what % "bfloat16 and float16") == {"every cell <= 2": True}
    assert verdicts(whole(), what % "float32") == {"every cell <= 1.3": False}


def test_what_was_not_measured_is_neither_met_nor_missed():
    none = results_of([])
    judged = report.all_verdicts(none._replace(accuracy={}))
    assert len(judged) > 40
    assert {one.met for one in judged} == {None}
    without = whole(absent=(COMPILED,))
    assert set(verdicts(without, f"{CROSS_ENTROPY}, {FORWARD}: times as fast as {COMPILED} (grid)").values()) == {None}


def test_the_plan_measures_what_every_bar_asks():
    judged = report.all_verdicts(whole())
    assert [one.what for one in judged if one.met is None] == []


@pytest.mark.parametrize("power", [0.0, 1.0, 1.3])
def test_the_slope_is_that_of_the_upper_two_decades(power):
    points = [(x, 7.0 * x**power if x >= growth.CLASSES[-1] / 100 else 5000.0) for x in growth.CLASSES]
    assert growth.slope(points) == pytest.approx(power)
    assert growth.slope(points[:-1]) is None, "the large end is not there"


def test_growth_is_judged_with_time_and_memory():
    judged = {one.what: one for one in growth.verdicts(whole())}
    assert judged[f"{CROSS_ENTROPY}, {STEP}: growth of time with rows, slope"].met is True
    memory = judged[f"{CROSS_ENTROPY}, {FORWARD}: growth of memory with classes, slope"]
    assert (memory.figure, memory.met) == ("1.00", False)  # as large as the logits, which is not allowed


def test_blocks_are_written_between_their_markers_and_nothing_else_is():
    page = "before\n<!-- cross_entropy: made by -->\nold\n<!-- end -->\n"
    page += "between\n<!-- absent: made by -->\n<!-- end -->\nafter\n"
    results = results_of(rows_of(Cell("cross_entropy", STEP, "float32", 4096, 8080), absent=("Liger",)))
    written = tables.filled(page, tables.blocks(results, []), "page.md")
    assert "old" not in written
    assert re.sub(r"(<!-- \w+: .*?-->\n).*?(<!-- end)", r"\1\2", written, flags=re.DOTALL) == page.replace("old\n", "")
    assert "| 4096 x 8080 | float32 | 33.1 | 5.0 | 50% | 50% | 2.0x | 2.0x | 1.00 | 1.00 | 3.00 | 3.00 |" in written
    assert "* cross_entropy: Liger not run in 1 of 1 cells: ModuleNotFoundError: not here" in written
    assert tables.filled(written, tables.blocks(results, []), "page.md") == written


def test_what_is_slower_than_a_peer_is_told_the_worst_first():
    results = results_of(rows_of(Cell("linear", STEP, "bfloat16", 5, 70, 9)))
    row = results.row(Cell("linear", STEP, "bfloat16", 5, 70, 9), LINEAR)
    row["times as fast as"] = {"one": 0.99, "two": 0.5, "three": 1.0}
    lines = tables.blocks(results, [])["slower"].splitlines()[2:]
    reported = [f"| {LINEAR} | {STEP} | 5 x 9 x 70 | bfloat16 | {peer} |" for peer in ("two | 0.50", "one | 0.99")]
    assert lines == reported
    assert tables.blocks(results_of([]), [])["slower"] == "Nothing was slower."


def test_a_page_without_markers_or_with_unknown_ones_is_refused():
    blocks = tables.blocks(results_of([]), [])
    with pytest.raises(SystemExit, match=r"page\.md has no place for figures: expected <!-- name"):
        tables.filled("nothing", blocks, "page.md")
    with pytest.raises(SystemExit, match=r"page\.md marks what nothing makes: speling; there are summary"):
        tables.filled("<!-- speling: x -->\n<!-- end -->\n", blocks, "page.md")


def test_results_are_the_same_after_they_were_kept(tmp_path):
    results = whole()
    results.save(tmp_path / "first.json")
    loaded = Results.load(tmp_path / "first.json")
    loaded.save(tmp_path / "second.json")
    assert len(loaded.rows) == len(results.rows)
    assert (tmp_path / "first.json").read_text() == (tmp_path / "second.json").read_text()


@pytest.mark.parametrize("page", report.PAGES)
def test_the_pages_say_what_was_measured(page):
    """The figures in README and docs/performance.md are those rendered from docs/performance.json."""
    results = Results.load(CHECKOUT / "docs" / "performance.json")
    text = (CHECKOUT / page).read_text("utf-8")
    assert text == tables.filled(text, tables.blocks(results, report.all_verdicts(results)), page)


def test_all_blocks_have_a_place():
    text = "".join((CHECKOUT / page).read_text("utf-8") for page in report.PAGES)
    assert set(tables.blocks(results_of([]), [])) == set(re.findall(r"<!-- (\w+): ", text))


def test_without_matplotlib_it_is_told_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    problems = plots.draw(whole(), tmp_path)
    assert list(problems) == ["time", "memory", "growth"]
    assert all("[plot]" in problem for problem in problems.values())
    assert list(tmp_path.iterdir()) == []


def test_names_beside_lines_are_moved_apart():
    assert plots._apart([0.1, 0.5, 0.52, 0.53], 0.1) == pytest.approx([0.1, 0.33, 0.43, 0.53])


@needs_matplotlib
@pytest.mark.parametrize("results", [whole(), whole(absent=(COMPILED,)), results_of([])], ids=["all", "some", "none"])
def test_pictures_are_drawn_and_small(tmp_path, results):
    assert plots.draw(results, tmp_path) == {}
    for name in ("time", "memory", "growth"):
        picture = (tmp_path / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 100_000
