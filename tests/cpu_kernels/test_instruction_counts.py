# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels execute as many instructions as recorded: a check of their speed that is independent of the load."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from instruction_counts import count, where
from kernel_builds import AVX2, why_it_cannot_run
from recorded_counts import FILE, differences, recorded, require_as_recorded


def test_the_cpu_kernels_take_the_recorded_instructions(tmp_path: Path) -> None:
    if reason := why_it_cannot_run(AVX2):
        pytest.skip(reason)
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not on PATH")
    if recorded(where()) is None:
        pytest.skip(f"{FILE.name} has nothing for {where()}; python tests/programs/record_counts.py adds it")
    require_as_recorded(where(), count(tmp_path), more=0.03, less=0.10)


@pytest.mark.parametrize(("count", "differs"), [(89, True), (91, False), (100, False), (102, False), (104, True)])
def test_a_count_may_grow_by_little_and_shrink_by_more(count: float, differs: bool) -> None:
    assert bool(list(differences({"x": count}, {"x": 100}, more=0.03, less=0.10))) is differs


def test_what_is_counted_is_what_is_recorded() -> None:
    assert list(differences({"new": 1}, {"old": 1}, more=1, less=1)) == [
        "new: counted, but not recorded",
        "old: recorded, but not counted",
    ]
