# SPDX-License-Identifier: Apache-2.0
"""Tries a set of flags on small kernels."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from npu_ce_jit.errors import ToolchainError
from npu_ce_jit.jit.bisheng import hints, probe_kernels
from npu_ce_jit.jit.bisheng.attempts import Attempt
from npu_ce_jit.jit.bisheng.flag_sets import Command, Compiler, FlagSet
from npu_ce_jit.jit.toolchain.compiler_output import is_full_disk, was_killed

_SECONDS = 120.0
_OPEN = (
    "import ctypes, os, sys; library = ctypes.CDLL(os.path.abspath(sys.argv[1])); [library[n] for n in sys.argv[2:]]"
)


class Probe(NamedTuple):
    """`directory` is private to this build; `environment` is for every process that is started."""

    compiler: Compiler
    cxx: Sequence[str]
    directory: Path
    environment: Mapping[str, str]

    def attempts(self, flag_set: FlagSet) -> Iterator[Attempt]:
        """The attempt with these flags and, if it failed for a known reason, others with additional flags.

        Raises OSError where this directory's disk is full.
        """
        name, header = probe_kernels.HEADER
        for file, text in {name: header, **probe_kernels.UNITS}.items():
            (self.directory / file).write_text(text, "utf-8")
        attempt = self._try(flag_set)
        yield attempt
        if hints.MISSING_CXX_HEADER.search(attempt.output):
            # clang took the newest GCC directory, and that one has no C++ headers.
            for more in hints.gcc_flags(self.cxx, self.environment):
                yield self._try(flag_set, more)

    def _try(self, flag_set: FlagSet, more: tuple[str, ...] = ()) -> Attempt:
        library = f"probe-{flag_set.name}.so"
        commands = self.compiler.commands(flag_set, Path(), tuple(probe_kernels.UNITS), library, more)
        for command in commands:
            (self.directory / command.output).unlink(missing_ok=True)
        opening = commands[-1]._replace(words=(*open_words(), library, *probe_kernels.LAUNCHERS))
        for command in (*commands, opening):
            shown = shlex.join((commands[-1] if command is opening else command).words)
            try:
                said, never_ran = self._failure(command), False
            except (OSError, subprocess.SubprocessError) as error:
                said, never_ran = f"error: {error}", True
            if is_full_disk(said):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))
            if said:
                return Attempt(flag_set, more, shown, said, is_the_last=never_ran or was_killed(said))
        return Attempt(flag_set, more, shlex.join(commands[0].words))

    def _failure(self, command: Command) -> str:
        """What the process says of its failure, or the empty string for success."""
        code, said = self._run(command.words)
        if code:
            return said or f"error: {command.words[0]} ended with code {code} and said nothing"
        made = (self.directory / command.output).exists()
        return "" if made else f"error: {command.words[0]} ended with code 0 and made no {command.output}"

    def _run(self, words: Sequence[str]) -> tuple[int, str]:
        """Exit code and output. A compiler that hangs is stopped with all that it started."""
        with tempfile.TemporaryFile(dir=self.directory) as output:
            process = subprocess.Popen(  # noqa: S603  no shell; bisheng is where Toolchain found it
                words,
                cwd=self.directory,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                umask=0o077,
                start_new_session=True,
            )
            try:
                code = process.wait(_SECONDS)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            output.seek(0)
            return code, output.read().decode("utf-8", "replace").strip()


def open_words() -> tuple[str, ...]:
    """A command to be followed by a library, which it opens, and by names of functions, which it looks up in there.

    It is a process of its own, since a library that does not open may end the process that tries. The linker accepts
    undefined symbols in a library, so only opening it finds them. Raises ToolchainError where there is no Python.
    """
    if getattr(sys, "frozen", False):  # sys.executable is the application, which would start once more
        raise ToolchainError(
            "NPU kernels are tried in a Python of their own, and a frozen application has none.",
            "Build beforehand, with `python -m npu_ce_jit build --into DIR`, and set NPU_CE_JIT_PREBUILT_DIR=DIR.",
        )
    return (sys.executable, "-I", "-S", "-c", _OPEN)
