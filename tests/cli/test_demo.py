# SPDX-License-Identifier: Apache-2.0
"""The first output that a new user sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_package import needs_compiler

from npu_ce_jit.cli import demo


@needs_compiler
@pytest.mark.exhaustive
def test_the_first_screen_names_the_kernels_and_has_no_warning(tmp_path: Path) -> None:
    environment = {**os.environ, "NPU_CE_JIT_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "npu_ce_jit", "demo", "--rounds", "1"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    device, kernels, *_ = done.stdout.splitlines()
    assert device.startswith("device: cpu, ")
    assert kernels.startswith("kernels: cpp (")
    assert "Warning" not in done.stderr
    assert sum(case.title in done.stdout for case in demo.CASES) == len(demo.CASES)
