# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of numbers on an npu: of these files, what asks for `any_device` or `device`."""

from __future__ import annotations

from pathlib import Path

import pytest
from npu_runs import HERE, require_all_pass_on_npu

NAMES = (
    *("cross_entropy", "derivatives", "edges", "errors", "function", "npu_cross_entropy_loss", "tracing"),
    *("linear_cross_entropy", "linear_errors", "linear_function"),
    *("compiled_graphs", "export", "fake_tensors", "redirected_calls"),
    *("amp", "checkpointing", "compiled_transforms", "profiles", "training"),
)


@pytest.mark.parametrize("name", NAMES)
def test_all_of_it_passes(name: str, tmp_path: Path) -> None:
    require_all_pass_on_npu(Path(HERE / f"test_{name}.py"), tmp_path)
