# SPDX-License-Identifier: Apache-2.0
"""Runs tests/on_npu: what only an npu has."""

from __future__ import annotations

from pathlib import Path

import pytest
from npu_runs import HERE, require_all_pass_on_npu


@pytest.mark.parametrize("file", sorted((HERE / "on_npu").glob("test_*.py")), ids=lambda file: file.stem)
def test_all_of_it_passes(file: Path, tmp_path: Path) -> None:
    require_all_pass_on_npu(file, tmp_path)
