# SPDX-License-Identifier: Apache-2.0
"""Runs test files in processes that have an npu: the real torch_npu on the virtual CANN."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

from locations import CHECKOUT, ON_NPU

# Files with numeric tests that also run on an npu. A group shares a process, because starting one takes as long as most
# files.
NUMBERS = (
    ("op/test_cross_entropy", "op/test_function"),
    ("op/test_npu_cross_entropy_loss", "op/test_edges", "op/test_errors", "op/test_derivatives"),
    (
        "op/test_linear_cross_entropy", "op/test_linear_outputs", "op/test_linear_errors", "op/test_linear_function",
    ),
    ("op/test_distill", "op/test_selected_logprobs", "op/test_distill_errors", "op/test_distill_tracing"),
    (
        "op/test_tracing", "op/test_compiled_graphs", "op/test_compiled_transforms", "op/test_export",
        "op/test_fake_tensors",
    ),
    (
        "op/test_token_logprobs", "op/test_token_logprobs_traced", "op/test_linear_token_logprobs",
    ),
    (
        "patch/test_redirected_calls", "patch/test_deferred_logits", "op/test_amp", "op/test_checkpointing",
        "op/test_profiles", "op/test_training",
    ),
)  # fmt: skip


def require_all_pass_on_npu(files: list[Path], tmp_path: Path) -> None:
    """Runs the files' tests for an npu, all of which must pass; conftest.py fails those that are skipped."""
    results = tmp_path / "results.xml"
    pytest_on_npu = [*ON_NPU, "python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_on_npu, f"--junitxml={results}", *files],
        cwd=CHECKOUT,
        env={**os.environ, "VIRTUAL_CANN_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    suite = ET.parse(results).getroot().find("testsuite")
    assert suite is not None
    ran = {case.attrib["classname"].rpartition(".")[2] for case in suite.iter("testcase")}
    assert ran == {file.stem for file in files}
