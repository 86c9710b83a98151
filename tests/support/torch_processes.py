# SPDX-License-Identifier: Apache-2.0
"""Runs programs in processes that are forked from one that has imported torch, but not this package.

Importing torch takes seconds, which only tests of a process's start need to spend.
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
CONTEXT.set_forkserver_preload(["torch", "torch.distributed.tensor"])  # importing it takes a third of the time


class Running(NamedTuple):
    """A program that was started; its output is kept in files."""

    process: multiprocessing.process.BaseProcess
    output_dir: tempfile.TemporaryDirectory[str]

    def wait(self, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Waits for its end. After `timeout` seconds, kills it and raises TimeoutError."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"it had not ended after {timeout} s")
        with self.output_dir as name:
            out, err = (Path(name, stream).read_text("utf-8") for stream in ("stdout", "stderr"))
        return subprocess.CompletedProcess("a program", self.process.exitcode, out, err)


def start(code: str, environment: Mapping[str, str], directory: Path | None = None) -> Running:
    """Like `python -c code`, except for variables that Python or torch read at their start."""
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
        atexit._run_exitfuncs()  # multiprocessing does not run them
        sys.stdout.flush()
