# SPDX-License-Identifier: Apache-2.0
"""What lies beside this directory, tests/virtual_cann above all, can be imported as by the other tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
