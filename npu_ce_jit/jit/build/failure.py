# SPDX-License-Identifier: Apache-2.0
"""A failed build, recorded for the processes of this node that started with it: many ranks, one compile, one error."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.build.node import node_file
from npu_ce_jit.jit.cache.permissions import UntrustedError, read_trusted, write_private
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings

_FRESH_SECONDS = 60.0  # after that, the user of a notebook may have fixed the cause
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STATUS = Path("/proc/self/stat")
_START_TICKS = 19  # index of starttime, ticks since boot, among the fields after the command's name (proc_pid_stat(5))


def record_failure(error: BuildError, name: str, settings: Settings, toolchain: Toolchain) -> None:
    """Leaves the error of the build `name` for other processes. Where it cannot be left, they build too."""
    fact, hint, command, first_lines, log_path = error.args
    record = {
        "at": _now(),
        "pid": os.getpid(),
        "made by": _maker(toolchain),
        "error": [fact, hint, command, list(first_lines), log_path],
    }
    with contextlib.suppress(OSError, UntrustedError):
        file = node_file(settings, name, ".failure")
        private_file = file.with_name(f".{file.name}")  # always this one, so that killed processes leave one at most
        private_file.unlink(missing_ok=True)
        write_private(private_file, json.dumps(record))
        private_file.rename(file)


def recorded_failure(name: str, settings: Settings, toolchain: Toolchain) -> BuildError | None:
    """The error of a build of `name` that failed with the same tools since this process began, or None.

    A process that starts later builds again, and so does the one whose build it was: what was fixed since may not be
    part of the key.
    """
    with contextlib.suppress(OSError, UntrustedError, ValueError, LookupError, TypeError):
        record = json.loads(read_trusted(node_file(settings, name, ".failure")))
        is_ours = record["pid"] == os.getpid()
        is_fresh = max(_process_start(), _now() - _FRESH_SECONDS) <= record["at"] <= _now()
        if is_fresh and not is_ours and record["made by"] == _maker(toolchain):
            fact, hint, command, first_lines, log_path = record["error"]
            return BuildError(fact, hint, command, tuple(first_lines), log_path)
    return None


def _now() -> float:
    """Seconds since the machine's start: nobody sets this clock, and all processes share it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _process_start() -> float:
    fields = _STATUS.read_text("utf-8", "replace").rpartition(")")[2].split()
    return int(fields[_START_TICKS]) / os.sysconf("SC_CLK_TCK")


def _maker(toolchain: Toolchain) -> str:
    boot = _BOOT_ID.read_text("utf-8") if _BOOT_ID.exists() else ""
    return hashlib.sha256(f"{boot}{toolchain.facts()}".encode("utf-8", "surrogateescape")).hexdigest()
