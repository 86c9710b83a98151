# SPDX-License-Identifier: Apache-2.0
"""Paths in the checkout. Where the package is installed from a wheel, only those of the tests exist."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS_DIR = Path(__file__).resolve().parents[1]
CHECKOUT = TESTS_DIR.parent
VIRTUAL_CANN = TESTS_DIR / "virtual_cann"
# Starts a command on the virtual npu, with the packages of this Python. `run` alone would take the first python3 on
# PATH, which has none of them where the environment is not activated.
ON_NPU = (sys.executable, str(VIRTUAL_CANN / "run"))
