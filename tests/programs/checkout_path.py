# SPDX-License-Identifier: Apache-2.0
"""Lets the programs of this folder import the tests' shared modules, as pyproject.toml does for pytest."""

import sys
from pathlib import Path

_TESTS_DIR = Path(__file__).resolve().parents[1]

sys.path[:0] = [str(_TESTS_DIR / name) for name in ("support", "virtual_cann/tests", "")]
