# SPDX-License-Identifier: Apache-2.0
"""The CANN tree that the compiler belongs to, found from the path by which the compiler was started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# At the tree's root:
DESCRIPTION = "virtual_cann.json"
LIBCLANG = "libclang.so"


@dataclass(frozen=True)
class Tree:
    root: Path
    generation: float  # 8.3, 8.5 or 9.1
    version: str
    content: str  # a hash of everything that the tree was made of
    include_dirs: tuple[Path, ...]  # what the driver adds for -x asc
    libclang: Path


def find_tree(program: str) -> Tree | None:
    for directory in _directories_above(Path(os.path.abspath(program))):
        description = directory / DESCRIPTION
        if description.is_file():
            facts = json.loads(description.read_text("utf-8"))
            include_dirs = tuple(directory / name for name in facts["include_dirs"])
            return Tree(
                directory, facts["generation"], facts["version"], facts["content"], include_dirs, directory / LIBCLANG
            )
    return None


def _directories_above(program: Path) -> Iterator[Path]:
    """The parent directories of the program as it was named, then those of the target of each link in turn."""
    while True:
        yield from program.parents
        if not program.is_symlink():
            return
        program = Path(os.path.normpath(program.parent / os.readlink(program)))
