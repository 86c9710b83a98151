# SPDX-License-Identifier: Apache-2.0
"""Where things lie in the checkout; of a package that was installed from a wheel, the tests alone."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS_DIR = Path(__file__).resolve().parents[1]
CHECKOUT = TESTS_DIR.parent
VIRTUAL_CANN = TESTS_DIR / "virtual_cann"
# Starts a command on the virtual npu, with the packages of this Python: by itself, `run` lends it those of the first
# python3 on PATH, which has none of them where the environment is used without being activated.
ON_NPU = (sys.executable, str(VIRTUAL_CANN / "run"))
