# SPDX-License-Identifier: Apache-2.0
"""The files that make the libraries, in a checkout or in a wheel."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from npu_ce_jit.errors import BuildError

_FOLDERS = ("csrc", "ascendc")
_SUFFIXES = (".cpp", ".h", ".hpp", ".inc", ".asc")

# What only one target is made of. The glue for the NPU reads headers of csrc/cpu and compiles none of its units.
_NPU_FOLDERS = ("ascendc/", "csrc/npu/")
_NPU_STEMS = ("_plan.cpp", "_plan.h")
_CPU_UNITS = ("csrc/cpu/", "csrc/register.cpp")


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
        if not sources.cpu.units(".cpp"):
            raise BuildError(f"Nothing to compile below {root_dir / 'csrc'}.", "Install npu_ce_jit again.")
        return sources

    @property
    def cpu(self) -> "Sources":
        """What the CPU library is made of."""
        return self._only(lambda name: not name.startswith(_NPU_FOLDERS) and not name.endswith(_NPU_STEMS))

    @property
    def npu(self) -> "Sources | None":
        """What the NPU libraries are made of; None where either the kernels or their glue are not there."""
        has_glue = any(name.startswith("csrc/npu/") for name in self.units(".cpp"))
        if not self.units(".asc") or not has_glue:
            return None
        return self._only(lambda name: not (name.endswith(".cpp") and name.startswith(_CPU_UNITS)))

    def units(self, suffix: str) -> tuple[str, ...]:
        """The names that a compiler is started with."""
        return tuple(name for name, _ in self.files if name.endswith(suffix))

    def are_as_they_were(self) -> bool:
        """Whether every file still has the content that its digest says."""
        try:
            return all(_digest(self.root_dir / name) == digest for name, digest in self.files)
        except OSError:
            return False

    def _only(self, is_wanted: Callable[[str], bool]) -> "Sources":
        return Sources(self.root_dir, tuple(pair for pair in self.files if is_wanted(pair[0])))


def _digests(directory: Path, name: str) -> Iterator[tuple[str, str]]:
    # os.walk takes a third of the time of Path.rglob, and this runs at each import.
    for parent, _, files in os.walk(directory):
        prefix = name + parent.removeprefix(str(directory)).replace(os.sep, "/")
        for file in files:
            if file.endswith(_SUFFIXES):
                yield f"{prefix}/{file}", _digest(os.path.join(parent, file))


def _digest(file: str | Path) -> str:
    with open(file, "rb", buffering=0) as content:
        return hashlib.sha256(content.read()).hexdigest()
