# SPDX-License-Identifier: Apache-2.0
"""docs/manual/ has rows for everything that the kernels and the glue call, and its rows name what exists."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from locations import CHECKOUT, VIRTUAL_CANN

PAGES = sorted((CHECKOUT / "docs" / "manual").glob("*.md"))
HEAD = ["function", "the manual or the header says", "source", "the virtual NPU", "test"]
RULES = set(re.findall(r"^  (\w+),", (VIRTUAL_CANN / "machine/rules.h").read_text("utf-8"), re.MULTILINE))
BY_THE_COMPILER = "bisheng"

pytestmark = pytest.mark.skipif(not PAGES, reason="the package under test is installed, not a checkout")


@dataclass(frozen=True)
class Row:
    page: str
    line: int
    cells: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def functions(self) -> set[str]:
        return set(re.findall(r"`([^`]+)`", self.cells[0]))

    @property
    def tests(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.cells[4])


def rows() -> list[Row]:
    """The rows of all tables with this manual's header."""
    found = []
    for page in PAGES:
        in_table = False
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            cells = tuple(cell.strip() for cell in line.strip().strip("|").split(" | "))
            if list(cells) == HEAD:
                in_table = True
            elif not line.startswith("|"):
                in_table = False
            elif in_table and not line.startswith("|---"):
                found.append(Row(page.name, number, cells))
    return found


ROWS = rows()


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def declared(header: str) -> Iterator[str]:
    """The functions that the header declares in namespace AscendC: `f` or `Class::f`, and `Class` for a constructor."""
    scopes: list[str] = []  # for each open brace, the scope that it opened; "" for a function's body
    depth, opens = 0, ""  # depth of parentheses; the class or namespace that the next brace opens
    tokens = re.findall(r"operator *(?:\[\]|\(\))|\w+|::|\S", re.sub(r"^\s*#.*$", "", header, flags=re.MULTILINE))
    for i, token in enumerate(tokens[:-1]):
        if token in ("namespace", "class", "struct") and tokens[i + 1].isidentifier() and not depth:
            opens = tokens[i + 1]
        elif token == "{" and not depth:
            scopes.append(opens)
            opens = ""
        elif token == "}" and not depth:
            scopes.pop()
        elif token == ";":
            opens = ""
        elif token in "()":
            depth += 1 if token == "(" else -1
        if tokens[i + 1] != "(" or not (token[0].isupper() or token.startswith("operator")):
            continue
        in_body = depth or scopes[:1] != ["AscendC"] or not all(scopes)
        if not in_body and tokens[i - 1] not in (":", ",", "operator"):
            classes = [*scopes[1:], *([tokens[i - 2]] if tokens[i - 1] == "::" else [])]
            yield token if classes in ([], [token]) else f"{classes[-1].replace('TQueBind', 'TQue')}::{token}"


@functools.cache
def api() -> frozenset[str]:
    """The functions of the virtual NPU's headers after preprocessing, since macros declare some of them."""
    include = VIRTUAL_CANN / "include"
    command = ["g++", "-E", "-x", "c++", "-std=c++17", "-I", str(include.parent), str(include / "kernel_operator.h")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r'^# \d+ "([^"]*)".*$', text, flags=re.MULTILINE)
    ours = (part for file, part in zip(parts[1::2], parts[2::2], strict=True) if "/ascendc/" in file)
    return frozenset(declared("\n".join(ours)))


@functools.cache
def called_by_kernels() -> frozenset[str]:
    """Matched by name only: a member's name counts for each class that has it."""
    sources = [
        path
        for path in (CHECKOUT / "ascendc").rglob("*.*")
        if path.suffix in (".h", ".asc") and path.parent.name != "board"
    ]
    text = "\n".join(without_comments(path.read_text("utf-8")) for path in sources)
    called = set(re.findall(r"\b([A-Z]\w*)\s*(?:<[^;{}()]*>\s*)?\(", text)) | {"operator[]"}
    called |= {
        name for name in ("TPipe", "TQue", "TBuf", "LocalTensor", "GlobalTensor") if re.search(rf"\b{name}\b", text)
    }
    marks = set(re.findall(r"#define (__\w+__)", (VIRTUAL_CANN / "include/bisheng_builtins.h").read_text("utf-8")))
    used = {mark for mark in marks if re.search(rf"\b{mark}\b", text)} | ({"<<<>>>"} if "<<<" in text else set())
    return frozenset({name for name in api() if name.rsplit("::")[-1] in called} | used)


@functools.cache
def called_by_glue() -> frozenset[str]:
    """Calls of ACL, and the functions of torch_npu that torch_npu_abi.h declares."""
    folder = CHECKOUT / "csrc" / "npu"
    sources = [path for path in folder.iterdir() if path.suffix in (".h", ".cpp")]
    text = "\n".join(without_comments(path.read_text("utf-8")) for path in sources)
    abi = without_comments((folder / "torch_npu_abi.h").read_text("utf-8"))
    return frozenset(
        set(re.findall(r"\b((?:acl|rt)[a-zA-Z]*[A-Z]\w*)\s*\(", text))
        | set(re.findall(r"^\s*(?:static )?[\w:&]+ (\w+)\([^{};]*\)(?: const)?;", abi, re.MULTILINE))
    )


def test_names_are_found() -> None:
    """Each kind has an example that is found, and none of the kernels' own or the virtual NPU's internal names are."""
    assert {"DataCopyPad", "SetFlag", "TPipe", "TPipe::InitBuffer", "TQue::EnQue", "TBuf::Get", "GetTPipePtr"} <= api()
    assert {"LocalTensor::operator[]", "GlobalTensor::GetValue", "WholeReduceSum", "Exp", "Cast"} <= api()
    assert {"DataCopyPad", "TQue::DeQue", "GlobalTensor::SetL2CacheHint", "__gm__", "<<<>>>"} <= called_by_kernels()
    assert {"SetAtomicAdd", "SyncAll", "VectorBarrier"}.isdisjoint(called_by_kernels())
    assert {"aclrtPeekAtLastError", "RunOpApiV2", "get_npu_format", "stream"} <= called_by_glue()
    assert len(called_by_kernels()) > 50


def documented() -> set[str]:
    return {name for row in ROWS for name in row.functions}


@pytest.mark.parametrize("function", sorted(called_by_kernels()) if PAGES else [])
def test_what_the_kernels_call_has_rows(function: str) -> None:
    assert function in documented()


@pytest.mark.parametrize("function", sorted(called_by_glue()) if PAGES else [])
def test_what_the_glue_calls_has_rows(function: str) -> None:
    assert function in {name.rsplit("::")[-1] for name in documented()}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_has_its_form(row: Row) -> None:
    assert len(row.cells) == len(HEAD), "five cells; a bar within one would be another"
    assert all(row.cells)
    assert row.functions
    judged, test = row.cells[3], row.cells[4]
    assert re.match(r"refuses `|models\b|cannot know\b", judged), judged
    if judged.startswith("refuses"):
        named = re.match(r"refuses ((?:`\w+`(?:, )?)+)", judged)
        assert named, f"the rule behind 'refuses': {judged}"
        rules = set(re.findall(r"`(\w+)`", named[1]))
        assert rules <= RULES | {BY_THE_COMPILER}, f"no rule of machine/rules.h: {rules - RULES}"
    else:
        assert re.match(r"(models|cannot know):? ?\S+", judged), f"what it models or assumes: {judged}"
    if test == "-":
        assert judged.startswith("cannot know"), "a test for what the virtual NPU refuses or models"
        return
    assert ", ".join(f"`{name}`" for name in row.tests) == test
    assert all(re.fullmatch(r"tests/[\w/]+\.py::test_\w+(\[.+\])?|board: \w+", name) for name in row.tests), test
    if not judged.startswith("cannot know"):
        assert any(name.startswith("tests/") for name in row.tests)


@functools.cache
def functions_of(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text("utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_tests_of_a_row_exist(row: Row) -> None:
    for name in row.tests:
        if name.startswith("tests/"):
            file, function = name.split("[")[0].split("::")
            assert (CHECKOUT / file).is_file(), file
            assert function in functions_of(CHECKOUT / file), name


def test_the_parameters_of_tests_exist() -> None:
    named = {name for row in ROWS for name in row.tests if name.startswith("tests/") and name.endswith("]")}
    files = sorted({name.split("::")[0] for name in named})
    # With this repository's settings: with the simulator's, names would be relative to its folder.
    settings = ["-c", str(CHECKOUT / "pyproject.toml")]
    command = [sys.executable, "-m", "pytest", *settings, "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert named - set(listed.stdout.splitlines()) == set()


def test_the_questions_of_rows_are_asked() -> None:
    """The command for the first run on a board asks questions with these names."""
    named = {name.removeprefix("board: ") for row in ROWS for name in row.tests if name.startswith("board: ")}
    board = CHECKOUT / "npu_ce_jit" / "board"
    strings = {
        node.value
        for file in board.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert named - strings == set()
