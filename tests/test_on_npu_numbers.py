# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of numbers on an npu: of these files, what asks for `any_device` or `device`."""

from __future__ import annotations

from pathlib import Path

import pytest
from npu_runs import HERE, require_all_pass_on_npu

# Files that share a process, since it takes as long to start as most of them to run.
GROUPS = (
    ("cross_entropy", "function"),
    ("npu_cross_entropy_loss", "edges", "errors", "derivatives"),
    ("linear_cross_entropy", "linear_errors", "linear_function"),
    ("tracing", "compiled_graphs", "compiled_transforms", "export", "fake_tensors"),
    ("redirected_calls", "amp", "checkpointing", "profiles", "training"),
)


@pytest.mark.parametrize("group", GROUPS, ids="-".join)
def test_all_of_it_passes(group: tuple[str, ...], tmp_path: Path) -> None:
    require_all_pass_on_npu([HERE / f"test_{name}.py" for name in group], tmp_path)
