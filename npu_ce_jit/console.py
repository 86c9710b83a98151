# SPDX-License-Identifier: Apache-2.0
"""What a command prints for people: in colour on a terminal, plain where a program or a file reads along.

Nothing is cut off and nothing in a text is taken for markup, because paths are there to be copied.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

Line = Sequence[tuple[str, str]]  # parts of it, each with its style, "" for none

_CODES = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33", "cyan": "36"}

READER_LEFT = 141  # the exit code that a shell gives to a program which SIGPIPE has ended


def show(lines: Iterable[Line], *, may_colour: bool) -> None:
    """Prints them, coloured where somebody looks on and `may_colour`."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    render = _coloured if is_terminal and may_colour else plain
    print("\n".join(map(render, lines)))


def plain(line: Line) -> str:
    """Without its styles."""
    return "".join(text for text, _ in line).rstrip()


def _coloured(line: Line) -> str:
    return "".join(f"\x1b[{_CODES[style]}m{text}\x1b[0m" if style and text else text for text, style in line)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, may_colour: bool) -> None:
    """One line a row."""
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
    """Bytes, as a person reads them."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def escape_what_stdout_cannot_show() -> None:
    """A path may hold what an ASCII log cannot, and bytes that are no text at all: neither ends a command."""
    with contextlib.suppress(AttributeError, ValueError):  # no standard output, or another object in its place
        if sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def flush() -> None:
    """Raises OSError here, and not in the interpreter's last moments, where standard output takes no more."""
    if sys.stdout is not None:
        sys.stdout.flush()


def discard_output() -> None:
    """Sends what is still to be written nowhere."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
