# SPDX-License-Identifier: Apache-2.0
"""What ninja's or a compiler's output says about a failure."""

from __future__ import annotations

import re

_MOST_LINES = 20
_TELLING = re.compile(r"error\b|undefined (?:reference|symbol)|cannot find|No such file|No space left", re.IGNORECASE)
_FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)


def is_full_disk(log: str) -> bool:
    """Whether a tool had no room to write: a fault of the directory, and not of what was compiled."""
    return _FULL_DISK.search(log) is not None


def compiler_failure(log: str) -> tuple[str, tuple[str, ...]]:
    """The command that failed first, and the first lines that say why.

    Ninja prints `FAILED: <outputs>`, the command, then what the command printed.
    """
    lines = log.splitlines()
    failed = next((index for index, line in enumerate(lines) if line.startswith("FAILED: ")), None)
    if failed is None:
        command, output = "", lines
    else:
        command, output = "".join(lines[failed + 1 : failed + 2]), lines[failed + 2 :]
    return command, telling_lines("\n".join(output))


def telling_lines(output: str) -> tuple[str, ...]:
    """The first lines that say why a compiler failed; its first lines at all where none has a telling word."""
    lines = [line.strip() if line.isspace() else line for line in output.splitlines()]
    telling = [line for line in lines if _TELLING.search(line)]
    return tuple((telling or [line for line in lines if line])[:_MOST_LINES])
