# SPDX-License-Identifier: Apache-2.0
"""Programs in processes of their own that are forked from one which has imported torch and nothing of ours.

To import torch takes seconds, of which a test that is not about the start of a process learns nothing.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed.tensor"])  # the latter is a third of the seconds


class Running(NamedTuple):
    """A program that has been started; its output is kept in files."""

    process: multiprocessing.process.BaseProcess
    output_dir: tempfile.TemporaryDirectory[str]

    def wait(self, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Once it has ended. Raises TimeoutError, having killed it, where it does not."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"it had not ended after {timeout} s")
        with self.output_dir as name:
            out, err = (Path(name, stream).read_text("utf-8") for stream in ("stdout", "stderr"))
        return subprocess.CompletedProcess("a program", self.process.exitcode, out, err)


def start(code: str, environment: Mapping[str, str], directory: Path | None = None) -> Running:
    """As `python -c code` would be, but for variables that Python or torch reads at its start."""
    output_dir = tempfile.TemporaryDirectory()
    arguments = (code, dict(environment), str(directory or Path.cwd()), output_dir.name)
    process = CONTEXT.Process(target=_run, args=arguments)
    process.start()
    return Running(process, output_dir)


def _run(code: str, environment: dict[str, str], directory: str, output_dir: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(output_dir, name), os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.argv = ["-c"]
    program = type(sys)("__main__")
    sys.modules["__main__"] = program
    try:
        exec(compile(code, "<string>", "exec"), vars(program))
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
        sys.stdout.flush()
