# SPDX-License-Identifier: Apache-2.0
"""The NPU kernels move and execute what was recorded. test_virtual_ce_forward_costs.py has what they may at most."""

from __future__ import annotations

from pathlib import Path

from npu_counts import WHERE, count
from recorded_counts import require_as_recorded


def test_the_npu_kernels_cost_what_is_recorded(tmp_path: Path) -> None:
    require_as_recorded(WHERE, count(tmp_path), more=0.005, less=0.005)
