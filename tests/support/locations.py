# SPDX-License-Identifier: Apache-2.0
"""Where things lie in the checkout; of a package that was installed from a wheel, the tests alone."""

from __future__ import annotations

from pathlib import Path

TESTS_DIR = Path(__file__).resolve().parents[1]
CHECKOUT = TESTS_DIR.parent
VIRTUAL_CANN = TESTS_DIR / "virtual_cann"
RUN_ON_NPU = VIRTUAL_CANN / "run"  # starts a program on the virtual npu
