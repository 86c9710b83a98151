# SPDX-License-Identifier: Apache-2.0
"""Runs tests/on_npu and the tests of numbers in processes that have an npu: the real torch_npu on the virtual CANN."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

HERE = Path(__file__).resolve().parent
# Of these, what asks for `any_device` or `device`.
NAMES = ("cross_entropy", "derivatives", "edges", "errors", "function", "npu_cross_entropy_loss", "tracing")
NUMBERS = [HERE / f"test_{name}.py" for name in NAMES]
FILES = [*sorted((HERE / "on_npu").glob("test_*.py")), *NUMBERS]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_all_of_it_passes(file: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    pytest_on_npu = [HERE / "virtual_cann/run", "python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_on_npu, f"--junitxml={results}", file],
        cwd=HERE.parent,
        env={**os.environ, "VIRTUAL_CANN_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    suite = ET.parse(results).getroot().find("testsuite")
    assert suite is not None
    assert int(suite.attrib["tests"]) > 0
    assert int(suite.attrib["skipped"]) == 0
