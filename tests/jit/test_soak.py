# SPDX-License-Identifier: Apache-2.0
"""The soak of tests/programs for a quarter of a minute; longer ones are run by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
from locations import TESTS_DIR
from toy_package import needs_compiler

pytestmark = [needs_compiler, pytest.mark.exhaustive]


def test_nothing_is_amiss_while_a_cache_is_broken_under_those_who_use_it() -> None:
    soak = subprocess.run(
        [sys.executable, TESTS_DIR / "programs" / "soak_cache.py", "15", "4"], capture_output=True, text=True
    )
    assert soak.returncode == 0, soak.stdout[-5_000:] + soak.stderr[-5_000:]
