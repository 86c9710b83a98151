# SPDX-License-Identifier: Apache-2.0
"""The source files of the libraries, in a checkout, in an installed package or in a zip file of one."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from npu_ce_jit.errors import BuildError

_FOLDERS = ("csrc/", "ascendc/")
_SUFFIXES = (".cpp", ".h", ".hpp", ".inc", ".asc")

_NPU_FOLDERS = ("ascendc/", "csrc/npu/")
_CPU_FOLDER = "csrc/cpu/"
_BOARD_FOLDER = "ascendc/board/"

_MACRO = r"[A-Za-z_][A-Za-z0-9_]*"
_VALUE = r"[A-Za-z0-9_@%+=:,./-]+"  # nothing that is special to a shell or ninja


class Sources:
    """`names` are posix, relative to `root_dir`, and sorted.

    Files are read when a key needs them: a machine without an NPU never needs the NPU's. `root_dir` may lie in a zip
    file, `archive`. Without names, as in an application that ships no sources, nothing can be built, and a prebuilt
    library of the same version serves.
    """

    def __init__(
        self, root_dir: Path, names: tuple[str, ...], defines: tuple[str, ...] = (), archive: Path | None = None
    ) -> None:
        self.root_dir: Final = root_dir
        self.names: Final = names
        self.defines: Final = defines  # macros that they are compiled with: NAME or NAME=VALUE
        self.archive: Final = archive

    @classmethod
    def installed(cls) -> "Sources":
        """The sources of this installation. Raises BuildError where its csrc/ has nothing to compile."""
        package_dir = Path(__file__).resolve().parents[1]
        if (package_dir / "csrc").is_dir():
            return cls.of(package_dir)
        # The project file tells a checkout from a `csrc` that another package dropped into site-packages.
        if (package_dir.parent / "pyproject.toml").is_file():
            return cls.of(package_dir.parent)
        archive = next(filter(Path.is_file, package_dir.parents), None)
        return cls(package_dir, () if archive is None else _names_in(archive, package_dir), archive=archive)

    @classmethod
    def of(cls, root_dir: Path) -> "Sources":
        """The sources below `root_dir`. Raises BuildError where there is nothing to compile."""
        names = (name for folder in _FOLDERS for name in _names(root_dir / folder, folder[:-1]))
        sources = cls(root_dir, tuple(sorted(names)))
        if not sources.cpu.units(".cpp"):
            raise BuildError(f"Nothing to compile below {root_dir / 'csrc'}.", "Install npu_ce_jit again.")
        return sources

    def with_defines(self, defines: Mapping[str, str | int | None]) -> "Sources":
        """The same sources with these macros; None is a macro without a value. Raises ValueError or TypeError."""
        made = sorted(_define(name, value) for name, value in defines.items())
        return Sources(self.root_dir, self.names, tuple(made), self.archive)

    def require(self) -> None:
        """Raises BuildError, with how to ship them, where there are none."""
        if not self.names:
            raise BuildError(
                f"No csrc/ in {self.root_dir} or beside it.",
                "Install npu_ce_jit again. An application that is frozen or zipped has to carry csrc/ and ascendc/ in "
                "this package (PyInstaller: --collect-data npu_ce_jit); or set NPU_CE_JIT_PREBUILT_DIR.",
            )

    def on_disk(self, directory: Path) -> "Sources":
        """The same sources, extracted into `directory` if they are in an archive. Raises BuildError or OSError."""
        if self.archive is None:
            return self
        for name, content in self._contents():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)
        return Sources(directory, self.names, self.defines)

    @property
    def define_flags(self) -> tuple[str, ...]:
        """The macros as flags, for every compiler."""
        return tuple(f"-D{define}" for define in self.defines)

    @property
    def cpu(self) -> "Sources":
        """The sources of the CPU library."""
        return self._only(lambda name: not name.startswith(_NPU_FOLDERS))

    @property
    def npu(self) -> "Sources | None":
        """The sources of the NPU libraries; None where either the kernels or their glue are missing."""
        if not self.names:
            return self
        sources = self._only(lambda name: not name.startswith((_CPU_FOLDER, _BOARD_FOLDER)))
        has_glue = any(name.startswith("csrc/npu/") for name in sources.units(".cpp"))
        return sources if sources.units(".asc") and has_glue else None

    @property
    def board(self) -> "Sources":
        """The sources of the kernels that `npu_ce_jit.board` runs."""
        return self._only(lambda name: name.startswith(_BOARD_FOLDER))

    def units(self, suffix: str) -> tuple[str, ...]:
        """The names of the translation units with this suffix."""
        return tuple(name for name in self.names if name.endswith(suffix))

    def digests(self) -> list[tuple[str, str]]:
        """Each name with the sha256 of what the file holds now. Raises BuildError where one cannot be read."""
        return [(name, hashlib.sha256(content).hexdigest()) for name, content in self._contents()]

    def _contents(self) -> Iterator[tuple[str, bytes]]:
        try:
            if self.archive is not None:
                yield from _contents_in(self.archive, self.root_dir, self.names)
                return
            for name in self.names:
                with open(f"{self.root_dir}/{name}", "rb", buffering=0) as file:
                    yield name, file.read()
        except (OSError, KeyError) as error:
            raise BuildError(f"A source cannot be read: {error}.", "Install npu_ce_jit again.") from error

    def _only(self, is_wanted: Callable[[str], bool]) -> "Sources":
        return Sources(self.root_dir, tuple(filter(is_wanted, self.names)), self.defines, self.archive)


def _define(name: str, value: str | int | None) -> str:
    if not isinstance(name, str) or not re.fullmatch(_MACRO, name):
        raise ValueError(f"defines: expected the name of a macro, letters, digits and _, got {name!r}")
    if value is None:
        return name
    if not isinstance(value, str | int):
        raise TypeError(f"defines: expected {name} to be a str, an int or None, got {value!r}")
    text = str(int(value)) if isinstance(value, int) else value  # True is 1
    if not re.fullmatch(_VALUE, text):
        raise ValueError(
            f"defines: expected {name} to be one word of letters, digits and _@%+=:,./-, got {text!r}; "
            "write anything else into a header of the sources"
        )
    return f"{name}={text}"


def _names(directory: Path, name: str) -> Iterator[str]:
    # os.walk takes a third of the time of Path.rglob, and this runs at each import.
    for parent, _, files in os.walk(directory):
        prefix = name + parent.removeprefix(str(directory)).replace(os.sep, "/")
        yield from (f"{prefix}/{file}" for file in files if file.endswith(_SUFFIXES))


def _names_in(archive: Path, root_dir: Path) -> tuple[str, ...]:
    from zipfile import ZipFile  # few installations are in a zip file

    prefix = f"{root_dir.relative_to(archive).as_posix()}/"
    with ZipFile(archive) as files:
        names = (name.removeprefix(prefix) for name in files.namelist() if name.startswith(prefix))
        return tuple(sorted(name for name in names if name.startswith(_FOLDERS) and name.endswith(_SUFFIXES)))


def _contents_in(archive: Path, root_dir: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    from zipfile import ZipFile

    with ZipFile(archive) as files:
        for name in names:
            yield name, files.read((root_dir / name).relative_to(archive).as_posix())
