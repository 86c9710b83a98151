# SPDX-License-Identifier: Apache-2.0
"""Runs a Python process on the virtual device, for variables that a process reads at its start."""

from __future__ import annotations

import os
import subprocess
import sys

import torch_processes


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the code after importing torch, and with it torch_npu."""
    return torch_processes.start(code, os.environ | environment).wait()


def run_from_the_start(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
