# SPDX-License-Identifier: Apache-2.0
"""`info` and `build_log`, for a prompt or a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from npu_ce_jit import bootstrap
from npu_ce_jit.errors import BuildError, NpuCeJitError
from npu_ce_jit.interactive.info import Info, info_of


def info() -> Info:
    """What this process runs on, what the cache holds, and what was found on this machine.

    Builds nothing and opens no library. The result is a dictionary of plain data that shows itself as a table.
    """
    return info_of(bootstrap.run())


def build_log(device: Literal["cpu", "npu"] = "cpu") -> str:
    """What ninja and the compilers said in the last build: of the kernels in use, or of others that failed since.

    Args:
        device: The device of the kernels.

    Raises:
        NpuCeJitError: there was no build, or its log is gone.
    """
    session = bootstrap.run()
    kernels = {"cpu": session.cpu, "npu": session.npu}[device]
    if isinstance(kernels.problem, BuildError) and kernels.problem.log_path:
        log_file = Path(kernels.problem.log_path)
    elif kernels.artifact is not None:
        log_file = kernels.artifact.entry_dir / "build.log"
    else:
        raise NpuCeJitError(f"No kernels for {device} were built here.", "Run: python -m npu_ce_jit doctor")
    try:
        return log_file.read_text("utf-8", "replace")
    except OSError as error:
        raise NpuCeJitError(f"The build's log is gone: {error}.", "Run: python -m npu_ce_jit build -v") from error
