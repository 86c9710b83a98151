# SPDX-License-Identifier: Apache-2.0
"""The files that make the library, in a checkout or in a wheel."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from npu_ce_jit.errors import BuildError

_FOLDERS = ("csrc", "ascendc")
_SUFFIXES = (".cpp", ".h", ".hpp", ".inc", ".asc")
_NPU_FOLDER = "csrc/npu/"


class Sources(NamedTuple):
    """`files` pairs each name (posix, relative to `root_dir`) with its sha256, sorted by name."""

    root_dir: Path
    files: tuple[tuple[str, str], ...]

    @classmethod
    def installed(cls) -> "Sources":
        """The sources of this installation. Raises BuildError where there are none."""
        package_dir = Path(__file__).resolve().parents[1]
        if (package_dir / "csrc").is_dir():
            return cls.of(package_dir)
        # The project file tells a checkout from a `csrc` that another package dropped into site-packages.
        if (package_dir.parent / "pyproject.toml").is_file():
            return cls.of(package_dir.parent)
        raise BuildError(f"No csrc/ in {package_dir} or beside it.", "Install npu_ce_jit again.")

    @classmethod
    def of(cls, root_dir: Path) -> "Sources":
        """The sources below `root_dir`. Raises BuildError where one cannot be read or there is nothing to compile."""
        try:
            files = [pair for folder in _FOLDERS for pair in _digests(root_dir / folder, folder)]
        except OSError as error:
            raise BuildError(f"A source cannot be read: {error}.", "Install npu_ce_jit again.") from error
        sources = cls(root_dir, tuple(sorted(files)))
        if not sources.cpu_units:
            raise BuildError(f"Nothing to compile below {root_dir / 'csrc'}.", "Install npu_ce_jit again.")
        return sources

    @property
    def cpu_units(self) -> tuple[str, ...]:
        """The names that are compiled into the CPU library."""
        return tuple(
            name
            for name, _ in self.files
            if name.startswith("csrc/") and name.endswith(".cpp") and not name.startswith(_NPU_FOLDER)
        )


def _digests(directory: Path, name: str) -> Iterator[tuple[str, str]]:
    # os.walk takes a third of the time of Path.rglob, and this runs at each import.
    for parent, _, files in os.walk(directory):
        prefix = name + parent.removeprefix(str(directory)).replace(os.sep, "/")
        for file in files:
            if file.endswith(_SUFFIXES):
                with open(os.path.join(parent, file), "rb") as content:
                    yield f"{prefix}/{file}", hashlib.sha256(content.read()).hexdigest()
