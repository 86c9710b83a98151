# SPDX-License-Identifier: Apache-2.0
"""The commands that docs/first-board.md asks of a person with a board and more time."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch_npu  # noqa: F401
from locations import CHECKOUT

PAGE = (CHECKOUT / "docs/first-board.md").read_text("utf-8").partition("## With more time")[2]
COMMANDS = re.findall(r"^\.venv/bin/python (-m npu_ce_jit (\w+) --json) > (\w+)\.json$", PAGE, re.MULTILINE)


def report_of(command: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *shlex.split(command), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def commands() -> dict[str, str]:
    assert [(name, file) for _, name, file in COMMANDS] == [("doctor", "doctor"), ("bench", "bench")]
    return {name: command for command, name, _ in COMMANDS}


def test_doctor_says_what_the_page_promises(commands: dict[str, str]) -> None:
    report = report_of(commands["doctor"])
    assert report["healthy"] is True
    assert report["npu"]["state"] == "loaded"
    assert report["npu"]["bisheng_flags_tried"] == ["asc: works"]
    (check,) = (check for check in report["checks"] if check["name"] == "NPU self-check")
    assert (check["verdict"], check["found"]) == ("ok", "passed")
    entry = Path(report["npu"]["library"]).parent
    assert {"build.log", "manifest.json"} <= {file.name for file in entry.iterdir()}


def test_bench_says_what_the_page_promises(commands: dict[str, str]) -> None:
    report = report_of(commands["bench"], "--quick", "64x4096")
    assert report["device"] == "Ascend910B2"
    assert report["flags"] == "asc"
    ours = [row for row in report["rows"] if row["ours"]]
    assert len(ours) == 3 * 2 * 2 + 3  # dtypes, forms and losses; and in place, without a forward alone
    for row in ours:
        gradients = row["form"] != "forward" and not row["implementation"].endswith("in place")
        assert row["peak over logits"] == pytest.approx(gradients + (row["loss"] == "drop-in"), abs=0.05)
        assert row["value"] == pytest.approx(8.8, abs=0.1)  # ln 4096, plus half the variance of the logits
    peers = {row["implementation"]: row["not run"] for row in report["rows"] if "not run" in row}
    for name in ("F.cross_entropy", "log_softmax + nll_loss", "torch_npu's"):
        assert "aclnn" in peers[name], "the virtual NPU has none of the peers' operators, and says so"
