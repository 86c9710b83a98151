# SPDX-License-Identifier: Apache-2.0
"""A Python process of its own on the virtual device, for what a process is told at its start."""

from __future__ import annotations

import os
import subprocess
import sys

import torch_processes


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process that has imported torch, and torch_npu with it."""
    return torch_processes.start(code, os.environ | environment).wait()


def run_from_the_start(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
