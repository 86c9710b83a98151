# SPDX-License-Identifier: Apache-2.0
"""Writes docs/compatibility.md: python tests/programs/compatibility.py

Runs the tests that are marked with `@pytest.mark.feature(...)`, and writes the page if all of them pass. The peers'
columns are from their documentation, which the page names.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import checkout_path  # noqa: F401  before what the tests share

# isort: split
import torch_versions
from locations import CHECKOUT, TESTS_DIR
from npu_runs import NUMBERS
from peers import GROUPS, PEERS, PEERS_OF, SOURCES

PAGE = CHECKOUT / "docs" / "compatibility.md"
_ON_NPU = TESTS_DIR / "on_npu"


class Shown(NamedTuple):
    """One test that demonstrates a feature."""

    feature: str
    file: Path
    test: str
    on_cpu: bool
    on_npu: bool

    @property
    def name(self) -> str:
        return f"{self.file.relative_to(TESTS_DIR).with_suffix('')}::{self.test}"


def shown() -> Iterator[Shown]:
    """The marked tests of every file. A test that uses a device also runs on the virtual NPU, if its file does."""
    files_on_npu = {TESTS_DIR / f"{name}.py" for group in NUMBERS for name in group}
    for file in sorted(TESTS_DIR.glob("**/test_*.py")):
        body = ast.parse(file.read_text("utf-8")).body
        of_all = [
            node for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        ]
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                asked = {argument.arg for argument in node.args.args}
                on_npu = file.parent == _ON_NPU or bool(file in files_on_npu and asked & {"device", "any_device"})
                for feature in _features([*node.decorator_list, *(mark.value for mark in of_all)]):
                    yield Shown(feature, file, node.name, file.parent != _ON_NPU, on_npu)


def _features(marks: list[ast.expr]) -> Iterator[str]:
    for mark in marks:
        for call in ast.walk(mark):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.feature":
                (name,) = call.args
                yield ast.literal_eval(name)


def page(tests: list[Shown]) -> str:
    """The page for the features that `tests` demonstrate."""
    lines = [_HEAD]
    for group, rows in GROUPS.items():
        peers = PEERS_OF.get(group, PEERS)
        lines += [f"\n## {group}\n", _row("", "here", "on an NPU", *peers), _row(*["---"] * (3 + len(peers)))]
        for feature, cells in rows.items():
            of_it = [test for test in tests if test.feature == feature]
            lines.append(_row(feature, *(_mark(of_it, place) for place in ("on_cpu", "on_npu")), *cells))
    lines += ["\n## The tests\n", _row("", "shown by"), _row("---", "---")]
    for rows in GROUPS.values():
        for feature in rows:
            names = [f"`{test.name}`" for test in tests if test.feature == feature]
            lines.append(_row(feature, ", ".join(names)))
    lines += ["\n## Where the peers' columns come from\n", *(f"* {peer}: {source}" for peer, source in SOURCES.items())]
    return "\n".join(lines) + f"\n\n{torch_versions.section(PAGE.read_text('utf-8'))}"


_HEAD = """\
# What works, here and elsewhere

Each row's tests pass; they run in every test run, those of the NPU on the virtual one ([virtual-npu](virtual-npu.md))
and never yet on a board.
`python tests/programs/compatibility.py` runs them and writes this page.

* "here": on the CPU, with the compiled kernels. "on an NPU": the test ran there too; empty where it did not.
* Peers' columns say what their documentation says, or their source, named at the end: "yes", "no" where it rules a
  thing out or lists everything but this, and "-" where it does not speak of it, which may still work."""


def _mark(tests: list[Shown], place: str) -> str:
    return "yes" if any(getattr(test, place) for test in tests) else ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    tests = list(shown())
    for arguments in (["-m", "feature"], ["tests/npu/test_device.py", "tests/npu/test_numbers.py"]):
        command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", *arguments]
        if subprocess.run(command, cwd=CHECKOUT).returncode:
            raise SystemExit(f"the page was not written: {' '.join(command)} failed")
    PAGE.write_text(page(tests), "utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")


if __name__ == "__main__":
    main()
