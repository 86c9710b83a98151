# SPDX-License-Identifier: Apache-2.0
"""Tries the rungs of the ladder on a small kernel, and says of each what came of it."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit import cures
from npu_ce_jit.jit.build_log import telling_lines
from npu_ce_jit.jit.ladder import LADDER, Command, Rung, command_of

_logger = logging.getLogger("npu_ce_jit")

_SECONDS = 120.0
LAUNCHER = "npu_ce_probe"
# What the real kernels lean on: the declaration, UB, a vector instruction, a copy and the launch.
KERNEL = """\
#include "kernel_operator.h"
extern "C" __global__ NPU_CE_VECTOR __aicore__ void npu_ce_probe_kernel(GM_ADDR out) {
  AscendC::TPipe pipe;
  AscendC::TQue<AscendC::QuePosition::VECOUT, 1> queue;
  pipe.InitBuffer(queue, 1, 256);
  AscendC::GlobalTensor<float> to;
  to.SetGlobalBuffer((__gm__ float*)out, 64);
  AscendC::LocalTensor<float> ones = queue.AllocTensor<float>();
  AscendC::Duplicate(ones, 1.0f, 64);
  queue.EnQue(ones);
  ones = queue.DeQue<float>();
  AscendC::DataCopy(to, ones, 64);
  queue.FreeTensor(ones);
}
extern "C" void npu_ce_probe(void* stream, void* out) { npu_ce_probe_kernel<<<1, nullptr, stream>>>((GM_ADDR)out); }
"""
# In a process of its own: a library that does not open may end the process that tries.
_OPEN = "import ctypes, sys; getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])"


class Attempt(NamedTuple):
    """What came of one rung; `output` is empty where it works."""

    rung: Rung
    more: tuple[str, ...]  # flags beside those of the rung
    command: Command
    shown: str  # the command, ready to paste; empty for a rung that was rejected
    output: str

    @property
    def works(self) -> bool:
        return not self.output

    def __str__(self) -> str:
        name = " ".join((self.rung.name, *self.more))
        return f"{name}: {'works' if self.works else next(iter(telling_lines(self.output)))}"


class Probe(NamedTuple):
    """`directory` is private to this build; `environment` is that of every process.

    `rejected` has the verdict on each rung whose kernels compiled, and then computed wrongly.
    """

    bisheng: str
    home: str
    cxx: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    rejected: Mapping[str, str] = {}

    def first_that_works(self) -> tuple[Command, list[Attempt]]:
        """Raises BuildError with a line for each rung, and with what cures the failure that got furthest."""
        source = self.directory / "probe.asc"
        source.write_text(KERNEL, "utf-8")
        attempts = []
        for attempt in self._attempts(source):
            _logger.debug("bisheng's flags %s", attempt)
            attempts.append(attempt)
            if attempt.works:
                return attempt.command, attempts
        log_file = self.directory / "build.log"
        log_file.write_text("\n".join(f"{one.shown}\n{one.output}" for one in attempts), "utf-8")
        furthest = next((one for one in attempts if one.rung.name in self.rejected), attempts[-1])
        raise BuildError(
            f"bisheng makes kernels that work with none of the {len(LADDER)} sets of flags that are known.",
            cures.of(furthest.output, self.bisheng, self.home),
            furthest.shown,
            tuple(map(str, attempts)),
            str(log_file),
        )

    def _attempts(self, source: Path) -> Iterator[Attempt]:
        for rung in LADDER:
            if rung.name in self.rejected:
                yield Attempt(rung, (), Command((), ()), "", f"error: {self.rejected[rung.name]}")
                continue
            attempt = self._try(rung, source)
            yield attempt
            if cures.MISSING_CXX_HEADER.search(attempt.output):
                # clang took the newest GCC directory, and that one has no C++ headers.
                for more in cures.gcc_flags(self.cxx, self.environment):
                    yield self._try(rung, source, more)

    def _try(self, rung: Rung, source: Path, more: tuple[str, ...] = ()) -> Attempt:
        library = self.directory / f"probe-{rung.name}.so"
        library.unlink(missing_ok=True)
        command = command_of(rung, self.home, platform.machine(), more)
        words = [self.bisheng, *command.before, str(source), "-o", str(library), *command.after]
        output = self._failure(words, library)
        if not output:
            output = self._failure([sys.executable, "-I", "-S", "-c", _OPEN, str(library), LAUNCHER], library)
        return Attempt(rung, more, command, shlex.join(words), output)

    def _failure(self, words: Sequence[str], library: Path) -> str:
        """What the process says of its failure, or the empty string for success."""
        try:
            code, said = self._run(words)
        except (OSError, subprocess.SubprocessError) as error:
            return f"error: {error}"
        if code:
            return said or f"error: {words[0]} ended with code {code} and said nothing"
        return "" if library.exists() else f"error: {words[0]} ended with code 0 and made no library"

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
