# SPDX-License-Identifier: Apache-2.0
"""Files of tests in processes that have an npu: the real torch_npu on the virtual CANN."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

HERE = Path(__file__).resolve().parent


def require_all_pass_on_npu(files: list[Path], tmp_path: Path) -> None:
    """Each file has tests for an npu, all of which pass, and none of which is skipped."""
    results = tmp_path / "results.xml"
    pytest_on_npu = [HERE / "virtual_cann/run", "python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_on_npu, f"--junitxml={results}", *files],
        cwd=HERE.parent,
        env={**os.environ, "VIRTUAL_CANN_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    suite = ET.parse(results).getroot().find("testsuite")
    assert suite is not None
    ran = {case.attrib["classname"].rpartition(".")[2] for case in suite.iter("testcase")}
    assert ran == {file.stem for file in files}
    assert int(suite.attrib["skipped"]) == 0
