# SPDX-License-Identifier: Apache-2.0
"""Runs numeric tests on an npu: those of the files in `NUMBERS` that use `any_device` or `device`."""

from __future__ import annotations

from pathlib import Path

import pytest
from locations import TESTS_DIR
from npu_runs import NUMBERS, require_all_pass_on_npu


@pytest.mark.parametrize(
    "group",
    [pytest.param(group, marks=[] if group is NUMBERS[0] else pytest.mark.exhaustive) for group in NUMBERS],
    ids=" ".join,
)
def test_all_of_it_passes(group: tuple[str, ...], tmp_path: Path) -> None:
    require_all_pass_on_npu([TESTS_DIR / f"{name}.py" for name in group], tmp_path)
