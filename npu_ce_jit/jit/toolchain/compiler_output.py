# SPDX-License-Identifier: Apache-2.0
"""What ninja's or a compiler's output says about a failure."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

BUILD_LOG = "build.log"
_MOST_LINES = 20
_TELLING = re.compile(
    r"error\b|undefined (?:reference|symbol)|cannot find|No such file|No space left|Killed", re.IGNORECASE
)
_FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_KILLED = re.compile(r"\bKilled\b|Cannot allocate memory|out of memory|std::bad_alloc", re.IGNORECASE)


class Failure(NamedTuple):
    """What failed first, and the first lines that say why; `outputs` is empty where ninja itself failed."""

    outputs: tuple[str, ...]
    command: str
    lines: tuple[str, ...]


def open_log(directory: Path) -> BinaryIO:
    """The log of the build in this directory, opened for appending. Raises OSError."""
    descriptor = os.open(directory / BUILD_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "ab")


def is_full_disk(log: str) -> bool:
    """Whether a tool had no room to write: a fault of the directory, and not of what was compiled."""
    return _FULL_DISK.search(log) is not None


def was_killed(log: str) -> bool:
    """Whether a tool had no memory: a fault of the machine, and not of what was compiled."""
    return _KILLED.search(log) is not None


def compiler_failure(log: str) -> Failure:
    """The first failure: ninja prints `FAILED: <outputs>`, the command, then what the command printed."""
    lines = log.splitlines()
    failed = next((index for index, line in enumerate(lines) if line.startswith("FAILED: ")), None)
    if failed is None:
        return Failure((), "", telling_lines(log))
    outputs = lines[failed].split()[1:]  # newer versions of ninja put the exit code among them
    command, output = "".join(lines[failed + 1 : failed + 2]), lines[failed + 2 :]
    return Failure(tuple(outputs), command, telling_lines("\n".join(output)))


def telling_lines(output: str) -> tuple[str, ...]:
    """The first lines that say why a compiler failed; just its first lines where no line has a telling word."""
    lines = [line.strip() if line.isspace() else line for line in output.splitlines()]
    telling = [line for line in lines if _TELLING.search(line)]
    return tuple((telling or [line for line in lines if line])[:_MOST_LINES])
