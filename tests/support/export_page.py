# SPDX-License-Identifier: Apache-2.0
"""The code of docs/export.md, block by block, for the tests that run it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch_processes
from pages import code_of


def blocks() -> list[str]:
    return code_of("export.md")


def run_block(
    code: str, directory: Path, python: Sequence[str | Path] = (), environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a block in a process of its own, in `directory`; `python` is the command that starts Python."""
    if not python:
        return torch_processes.start(code, environment or os.environ, directory).wait(600.0)
    return subprocess.run(
        [*python, "-c", code], cwd=directory, env=environment, capture_output=True, text=True, timeout=600
    )
