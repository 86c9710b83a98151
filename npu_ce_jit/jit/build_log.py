# SPDX-License-Identifier: Apache-2.0
"""What ninja's output says about a failure."""

from __future__ import annotations

import re

_MOST_LINES = 20
_TELLING = re.compile(r"error\b|undefined (?:reference|symbol)|cannot find|No such file|No space left", re.IGNORECASE)


def compiler_failure(log: str) -> tuple[str, tuple[str, ...]]:
    """The command that failed first, and the first lines that say why.

    Ninja prints `FAILED: <outputs>`, the command, then what the command printed. Where no line has a telling word
    (a compiler that was killed, or is a script), the first lines of the output stand in for them.
    """
    lines = log.splitlines()
    failed = next((index for index, line in enumerate(lines) if line.startswith("FAILED: ")), None)
    if failed is None:
        command, output = "", lines
    else:
        command, output = "".join(lines[failed + 1 : failed + 2]), lines[failed + 2 :]
    telling = [line for line in output if _TELLING.search(line)]
    return command, tuple((telling or [line for line in output if line.strip()])[:_MOST_LINES])
