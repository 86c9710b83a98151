# SPDX-License-Identifier: Apache-2.0
"""What a command prints for people: in colour on a terminal, plain into a pipe or a file.

No text is truncated or read as markup, so that paths can be copied.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

Line = Sequence[tuple[str, str]]  # (text, style) pairs; "" is no style

_CODES = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33", "cyan": "36"}

READER_LEFT = 141  # a shell's exit code for a program that SIGPIPE has ended: 128 + 13


def show(lines: Iterable[Line], *, may_colour: bool) -> None:
    """Prints the lines, in colour if standard output is a terminal and `may_colour`."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    render = _coloured if is_terminal and may_colour else plain
    print("\n".join(map(render, lines)))


def plain(line: Line) -> str:
    """The text of a line, without its styles."""
    return "".join(text for text, _ in line).rstrip()


def _coloured(line: Line) -> str:
    return "".join(f"\x1b[{_CODES[style]}m{text}\x1b[0m" if style and text else text for text, style in line)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, may_colour: bool) -> None:
    """Prints the header and the rows, one a line, in aligned columns."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    show([[(line.rstrip(), "" if number else "bold")] for number, line in enumerate(lines)], may_colour=may_colour)


def group(title: str, rows: Sequence[tuple[str, str]]) -> Iterator[Line]:
    """Names and texts below a title. A text may have several lines."""
    yield [(title, "bold")]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        first, *others = text.splitlines() or [""]
        yield [(f"  {name.ljust(width)}  {first}", "")]
        for other in others:
            yield [(f"  {'':{width}}  {other}", "")]


def size_of(count: int) -> str:
    """A number of bytes, in the unit that suits it."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def escape_what_stdout_cannot_show() -> None:
    """Has print escape what it cannot encode: a path may be non-ASCII, or hold bytes that are no text."""
    with contextlib.suppress(AttributeError, ValueError):  # no standard output, or another object in its place
        if sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def flush() -> None:
    """Flushes standard output, so that a failed write raises OSError here and not at the interpreter's exit."""
    if sys.stdout is not None:
        sys.stdout.flush()


def discard_output() -> None:
    """Points standard output at /dev/null, so that a later flush of what is buffered cannot fail."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
