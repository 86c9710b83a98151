# SPDX-License-Identifier: Apache-2.0
"""Tables for people: their header in bold on a terminal, plain where a program or a file reads along."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One line a row; nothing is cut off, because paths are there to be copied."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console

            console = Console(markup=False, highlight=False, soft_wrap=True)
            console.print(lines[0].rstrip(), style="bold")
            for line in lines[1:]:
                console.print(line.rstrip())
            return
    print("\n".join(line.rstrip() for line in lines))


def size_of(count: int) -> str:
    """Bytes, as a person reads them."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
