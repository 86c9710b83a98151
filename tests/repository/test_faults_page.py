# SPDX-License-Identifier: Apache-2.0
"""docs/faults.md names a test for each fault; each of them exists."""

from __future__ import annotations

import ast
import re

import pytest
from locations import CHECKOUT, TESTS_DIR

PAGE = CHECKOUT / "docs" / "faults.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the package under test is installed, not a checkout")


def _rows() -> list[list[str]]:
    lines = PAGE.read_text("utf-8").splitlines() if PAGE.is_file() else []
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return [row for row in cells if row[0] != "fault"]


def _tests_of(name: str) -> set[str]:
    (file,) = TESTS_DIR.rglob(f"{name}.py")
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row[0])
def test_every_fault_has_tests_and_they_exist(row: list[str]) -> None:
    assert len(row) == 3
    named = re.findall(r"`(test_\w+)::(test_\w+)`", row[2])
    assert named
    assert ", ".join(f"`{file}::{test}`" for file, test in named) == row[2].rstrip(" |")
    for file, test in named:
        assert test in _tests_of(file), f"{file}.py has no {test}"


def test_the_page_is_read() -> None:
    assert len(_rows()) > 30
