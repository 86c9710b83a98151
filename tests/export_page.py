# SPDX-License-Identifier: Apache-2.0
"""The code of docs/export.md, block by block, for the tests that run it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pages import code_of


def blocks() -> list[str]:
    return code_of("export.md")


def run_block(
    code: str,
    directory: Path,
    python: Sequence[str | Path] = (sys.executable,),
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where its relative paths are below `directory`."""
    return subprocess.run(
        [*python, "-c", code], cwd=directory, env=environment, capture_output=True, text=True, timeout=600
    )
