# SPDX-License-Identifier: Apache-2.0
"""Runs tests/on_npu, whose tests need an npu."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from locations import CHECKOUT, TESTS_DIR
from npu_runs import require_all_pass_on_npu

# Files that share a process, because starting one takes as long as most of them.
GROUPS = (
    ("device", "runtime"),
    ("calls", "launches", "operators", "refused"),
    ("amp", "switch", "linear"),
    ("faults",),
    ("commands", "errors", "glue", "graphs"),
    ("board",),
    ("rebuild", "self_check"),
)


def test_no_file_is_left_out() -> None:
    there = sorted(file.stem.removeprefix("test_on_npu_") for file in (TESTS_DIR / "on_npu").glob("test_*.py"))
    assert sorted(name for group in GROUPS for name in group) == there


IN_SHORT = GROUPS[1:4]  # the other groups start many processes, or build many times


@pytest.mark.parametrize(
    "group",
    [pytest.param(group, marks=[] if group in IN_SHORT else pytest.mark.exhaustive) for group in GROUPS],
    ids="-".join,
)
def test_all_of_it_passes(group: tuple[str, ...], tmp_path: Path) -> None:
    require_all_pass_on_npu([TESTS_DIR / f"on_npu/test_on_npu_{name}.py" for name in group], tmp_path)


def test_where_the_shell_turns_torch_s_autoload_off_the_tests_find_torch_npu_all_the_same() -> None:
    off = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    code = "import conftest, os; print(os.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD'))"
    done = subprocess.run([sys.executable, "-c", code], env=off, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.split() == ["None"], done.stderr
