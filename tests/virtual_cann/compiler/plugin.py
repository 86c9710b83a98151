# SPDX-License-Identifier: Apache-2.0
"""The kernels that CANN 8.5's plugin for -x asc cannot find, although later compilers accept them.

The plugin looks a kernel up by the file, line and column where its name is spelled. A name made by ## is spelled in no
file. A kernel that is not found is built for cube and vector cores, and then two vector cores run each block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from virtual_cann.compiler.declarations import Declarations
from virtual_cann.compiler.tokens import Diagnostic, Place


def unspelled_kernels(declarations: Declarations) -> Iterator[Diagnostic]:
    for function in declarations.functions:
        if "global" in function.marks and not re.search(rf"\b{function.name}\b", _line(function.place)):
            yield Diagnostic(
                function.place,
                f"'{function.name}' is a kernel whose name is not written here: CANN 8.5 does not find it, and would "
                "run each block on two vector cores; write the name out instead of pasting it",
            )


def _line(place: Place) -> str:
    lines = Path(place.file).read_text("utf-8", errors="surrogateescape").splitlines()
    return lines[place.line - 1] if place.line <= len(lines) else ""
