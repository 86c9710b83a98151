# SPDX-License-Identifier: Apache-2.0
"""Tests the package with several versions of torch: python tests/programs/torch_versions.py [ROW ...]

A row has the name of its torch, on the virtual NPU after that of its CANN: 2.10.0, 9.1+2.10.0. Each row has an
environment of its own, kept in the cache, in which short tests run. Each result replaces the row's line in
docs/compatibility.md as soon as it is there; other rows' lines stay. Needs a package index, a compiler, and the rows'
versions of Python.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from xml.etree import ElementTree as ET

import checkout_path  # noqa: F401  before what the tests share

# isort: split
import slim_torch
from locations import CHECKOUT, VIRTUAL_CANN
from npu_runs import NUMBERS
from virtual_cann.environment import torch_npu_for
from virtual_cann.layouts import LAYOUTS

PAGE = CHECKOUT / "docs" / "compatibility.md"
HEAD = (
    "CANN",
    "torch",
    "torch_npu",
    "Python",
    "tests",
    "passed",
    "failed",
    "skipped",
    "seconds",
    "of a processor",
    "date",
)

# The tests that depend on torch: on its dispatcher, tracing, autograd, compilers, processes and patched functions; and
# on the cache's key and the import. Left out are:
# * the rest of jit/ and interactive/, cpu_kernels/, npu_kernels/, cli/, repository/ and the simulator's own tests:
#   they test compilers, locks, caches, kernels, commands and pages, with the same result for any torch;
# * the rest of patch/: each framework needs a torch of its own;
# * op/test_compiled_numbers.py: it repeats the other files' compiled forms with every number.
TESTS = (
    "op", "distributed",
    "patch/test_switch.py", "patch/test_switch_and_torch.py", "patch/test_redirected_calls.py",
    "patch/test_deferred_logits.py", "patch/test_exchange.py", "patch/test_importers.py",
    "jit/test_import.py", "jit/test_cache_key.py", "jit/test_fork.py", "interactive/test_reload.py",
    "repository/test_torch_private.py",
)  # fmt: skip
LEFT_OUT = ("op/test_compiled_numbers.py",)
# Numbers, tracing and the cache.
QUICK = (
    "op/test_cross_entropy.py", "op/test_npu_cross_entropy_loss.py", "op/test_linear_cross_entropy.py",
    "op/test_tracing.py", "op/test_fake_tensors.py", "jit/test_import.py", "jit/test_cache_key.py",
)  # fmt: skip


class Row(NamedTuple):
    torch: str
    python: str
    cann: str = ""  # empty: on the CPU
    torch_npu: str = ""  # empty: the newest tested one for this torch

    @property
    def name(self) -> str:
        return f"{self.cann}+{self.torch}" if self.cann else self.torch

    @property
    def cells(self) -> tuple[str, ...]:
        torch_npu = (self.torch_npu or torch_npu_for(self.torch)) if self.cann else ""
        return (self.cann and LAYOUTS[float(self.cann)].version, self.torch, torch_npu, self.python)


ROWS = (
    Row("2.7.1", "3.10"),
    Row("2.8.0", "3.11"),
    Row("2.9.1", "3.11"),
    Row("2.10.0", "3.12"),
    Row("2.11.0", "3.11"),
    Row("2.12.1", "3.12"),
    Row("2.13.0", "3.11"),
    Row("2.14.1", "3.11"),
    Row("2.15.0", "3.13"),
    # Not 2.7.1.post4, the last whose release notes name CANN 8.3: its headers lack names that the simulator's runtime
    # needs.
    Row("2.7.1", "3.10", "8.3"),
    Row("2.7.1", "3.10", "9.1"),
    Row("2.8.0", "3.11", "8.5"),
    Row("2.9.1", "3.11", "8.5"),
    Row("2.10.0", "3.12", "9.1"),
    Row("2.11.0", "3.11", "9.1"),
    Row("2.12.1", "3.12", "9.1"),
    Row("2.14.0", "3.11", "9.1"),  # torch_npu 2.14.0 requires exactly this version
)


class Outcome(NamedTuple):
    passed: int
    failed: list[str]
    skipped: Counter[str]  # by reason


def run(row: Row, arguments: argparse.Namespace) -> Outcome:
    made = slim_torch.environment(arguments.cache, row.torch, row.python, arguments.python)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NPU_CE_JIT_")}
    variables = made.variables(variables) | {"NPU_CE_JIT_CACHE_DIR": str(made.directory / "npu_ce_jit")}
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    commands: list[list[str | Path]]
    if row.cann:
        variables |= {"VIRTUAL_CANN_LAYOUT": row.cann, "VIRTUAL_CANN_TORCH_NPU": row.torch_npu}
        groups = NUMBERS[:1] if arguments.quick else NUMBERS
        commands = [
            [VIRTUAL_CANN / "run", "python", *pytest, *(f"tests/{name}.py" for name in group)] for group in groups
        ]
    else:
        # Passed as testpaths, not as arguments, because naming a file would also run its exhaustive tests.
        paths = " ".join(f"tests/{name}" for name in (QUICK if arguments.quick else TESTS))
        workers = ["-n", arguments.workers, "--dist", "loadfile"]
        left_out = [f"--ignore=tests/{name}" for name in LEFT_OUT]
        commands = [[made.python, *pytest, *workers, *left_out, "-o", f"testpaths={paths}"]]
    logs = [arguments.log_dir / f"{row.name}.{number}.log" for number in range(len(commands))]
    at_once = (os.cpu_count() or 1) if arguments.workers == "auto" else int(arguments.workers)
    with ThreadPoolExecutor(at_once if row.cann else 1) as threads:
        outcomes = list(threads.map(partial(_outcome, variables), commands, logs))
    passed, failed, skipped = zip(*outcomes, strict=True)
    return Outcome(sum(passed), [*chain.from_iterable(failed)], sum(skipped, Counter()))


def _outcome(variables: dict[str, str], command: Sequence[str | Path], log: Path) -> Outcome:
    """The outcome of one run of pytest."""
    with tempfile.TemporaryDirectory() as folder, log.open("w") as output:
        results = Path(folder, "results.xml")
        done = subprocess.run(
            [*command, f"--junitxml={results}"], cwd=CHECKOUT, env=variables, stdout=output, stderr=subprocess.STDOUT
        )
        if not results.exists():
            return Outcome(0, [f"pytest ended with {done.returncode} before it wrote its results: {log}"], Counter())
        cases = list(ET.parse(results).getroot().iter("testcase"))
    names = [f"{case.attrib['classname']}::{case.attrib['name']}".removeprefix("::") for case in cases]
    # A test is listed twice if its teardown failed too.
    failed = [*dict.fromkeys(name for name, case in zip(names, cases, strict=True) if _has(case, "failure", "error"))]
    skipped = Counter(skip.attrib["message"] for case in cases for skip in case.iter("skipped"))
    return Outcome(len({*names}) - len(failed) - skipped.total(), failed, skipped)


def _has(case: ET.Element, *tags: str) -> bool:
    return any(case.find(tag) is not None for tag in tags)


def section(page: str, ran: Mapping[Row, str] = MappingProxyType({})) -> str:
    """The page's section on versions, with the new lines of these rows and the old ones of the others."""
    before = page.partition(_TITLE)[2]
    lines = [line for row in ROWS if (line := ran.get(row) or _line_of(row, before))]
    return "".join((_TITLE, _ABOUT, _line(HEAD), _line(["---"] * len(HEAD)), *lines))


_TITLE = "## With which torch\n"
_ABOUT = """
`python tests/programs/torch_versions.py` runs the tests of numbers, tracing, training, processes and the cache with
each of these, and writes this table. Rows without CANN ran on the CPU, the others on the virtual NPU. A test is skipped
where torch, or the machine, lacks what it is about; the program prints the reasons. The "quick" tests are those of
numbers, tracing and the cache (`--quick`). The seconds hold making the environment where there was none.

"""


def _line_of(row: Row, section: str) -> str | None:
    cells = re.escape(_line(row.cells).removesuffix("|\n"))
    found = re.search(rf"^{cells}.*\n", section, re.MULTILINE)
    return found and found[0]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _chosen(names: Sequence[str]) -> list[Row]:
    by_name = {row.name: row for row in ROWS}
    if unknown := [name for name in names if name not in by_name]:
        raise SystemExit(f"no row {unknown[0]!r}: expected some of {' '.join(by_name)}")
    return [by_name[name] for name in names] or list(ROWS)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all of them, unless some are named")
    parser.add_argument("--quick", action="store_true", help="numbers, tracing and the cache only")
    parser.add_argument(
        "--ends",
        action="store_true",
        help="the oldest and the newest torch that can be had here, one environment after the other; writes no page",
    )
    parser.add_argument(
        "--python", action="append", default=[], metavar="FILE", help="an interpreter to use, if it fits"
    )
    parser.add_argument("--workers", default="auto", metavar="N", help="processes of pytest at once (auto: one a core)")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--cache", type=Path, default=base / "npu_ce_jit" / "torch_versions", metavar="DIR")
    return parser.parse_args()


class Report:
    """Runs rows, and reports results at once; `lines` are the new lines of the table."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.lines: dict[Row, str] = {}
        self.all_passed = True
        self.lacked_room = False

    def run(self, row: Row) -> bool:
        """Whether the row's environment could be made; if not, that is reported."""
        began, used = time.monotonic(), _processor_seconds()
        try:
            outcome = run(row, self._arguments)
        except slim_torch.UnavailableError as error:
            _say(f"{row.name}: not run: {error}\n")
            self.lacked_room |= isinstance(error, slim_torch.NoRoomError)
            return False
        self.all_passed &= not outcome.failed
        counts = (
            "quick" if self._arguments.quick else "all",
            outcome.passed,
            len(outcome.failed),
            outcome.skipped.total(),
            round(time.monotonic() - began),
            round(_processor_seconds() - used),
        )
        self.lines[row] = _line([*row.cells, *map(str, counts), time.strftime("%Y-%m-%d")])
        _say(self.lines[row])
        _say("".join(f"    failed: {name}\n" for name in outcome.failed))
        _say("".join(f"    skipped {count}: {reason}\n" for reason, count in outcome.skipped.most_common()))
        return True


def _processor_seconds() -> float:
    """CPU time of the started processes: on a busy machine, wall-clock time alone says little."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def ran_both_ends(report: Report, arguments: argparse.Namespace) -> bool:
    """Whether the oldest and the newest torch ran. Also True, with a message, if a full disk prevented it."""

    def run(row: Row) -> bool:
        if not report.run(row):
            return False
        slim_torch.remove(arguments.cache, row.torch, row.python)
        return True

    on_cpu = [row for row in ROWS if not row.cann]
    if any(map(run, on_cpu)):  # any() stops at the first that is available
        return any(row in report.lines or run(row) for row in reversed(on_cpu))
    if report.lacked_room:
        _say("NO OTHER TORCH WAS TRIED: there is no room for an environment\n")
    return report.lacked_room


def main() -> None:
    arguments = _arguments()
    arguments.log_dir = Path(tempfile.mkdtemp(prefix="torch_versions."))
    _say(f"what pytest prints is in {arguments.log_dir}\n")
    report = Report(arguments)
    if arguments.ends:
        complete = ran_both_ends(report, arguments)
    else:
        complete = True
        for row in _chosen(arguments.rows):
            complete &= report.run(row)
            page = PAGE.read_text("utf-8")
            PAGE.write_text(page.partition(_TITLE)[0] + section(page, report.lines), "utf-8")
    raise SystemExit(not (complete and report.all_passed))


if __name__ == "__main__":
    main()
