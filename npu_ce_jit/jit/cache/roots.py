# SPDX-License-Identifier: Apache-2.0
"""Where the cache may be: the directories, in order, and which of them can be built in."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

from npu_ce_jit.jit.cache.permissions import UntrustedError, make_private_dir
from npu_ce_jit.settings import Settings

_LAYOUT = "v1"


class Root:
    """A directory that may hold the cache, and the variable that names it. Nothing is written to a read-only one.

    `anothers_home` is set where this process runs as root with a user's HOME: nothing is written there either.
    """

    def __init__(self, path: Path, origin: str, *, read_only: bool = False, anothers_home: Path | None = None) -> None:
        self.path: Final = path
        self.origin: Final = origin
        self.read_only: Final = read_only
        self.anothers_home: Final = anothers_home

    @property
    def layout_dir(self) -> Path:
        """Without symbolic links: the root may be one, but must not lead elsewhere after its target was checked."""
        return Path(os.path.realpath(self.path)) / _LAYOUT

    def require_ours(self) -> None:
        """Raises UntrustedError where it is another user's home that this process has been given."""
        if self.anothers_home is not None:
            raise UntrustedError(
                f"{self.anothers_home} is another user's, and nothing of root's is left there",
                "Start the program with root's own HOME (sudo -H), or set NPU_CE_JIT_CACHE_DIR to another place",
            )

    def make_layout_dir(self) -> Path:
        """Makes `layout_dir`. Raises UntrustedError, or OSError where no library could be built or loaded."""
        self.require_ours()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        layout_dir = self.layout_dir
        make_private_dir(layout_dir.parent)
        make_private_dir(layout_dir)
        if os.statvfs(layout_dir).f_flag & os.ST_NOEXEC:
            raise OSError(
                errno.EACCES, "its file system is mounted noexec, so no library could be loaded", str(layout_dir)
            )
        return layout_dir


def roots_of(settings: Settings) -> tuple[Root, ...]:
    """In order: the user's own directory, prebuilt caches, a private directory in TMPDIR.

    Where the user's directory cannot be written, the next of NPU_CE_JIT_CACHE_DIR, XDG_CACHE_HOME and HOME follows it.
    Prebuilt caches come after these, which hold an entry only where the prebuilt one could not be used.
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"  # Windows finds nothing and builds nothing
    return (
        *_own_roots(settings),
        *(Root(path, "NPU_CE_JIT_PREBUILT_DIR", read_only=True) for path in settings.prebuilt_dirs),
        Root(tmp_dir(settings) / f"npu_ce_jit-{user}", "TMPDIR"),
    )


def tmp_dir(settings: Settings) -> Path:
    """TMPDIR, or its default where that is in another user's home too."""
    if _home_of_another(settings.tmp_dir, settings) is None:
        return settings.tmp_dir
    return cast(Path, Settings._field_defaults["tmp_dir"])


def _own_roots(settings: Settings) -> Iterator[Root]:
    for base, name, origin in (
        (settings.cache_dir, "", "NPU_CE_JIT_CACHE_DIR"),
        (settings.xdg_cache_home, "npu_ce_jit", "XDG_CACHE_HOME"),
        (settings.home, ".cache/npu_ce_jit", "HOME"),
    ):
        if base is not None:
            root = Root(base / name, origin, anothers_home=_home_of_another(base, settings))
            yield root
            if root.anothers_home is None and _can_be_written(root.path):
                return


def _home_of_another(path: Path, settings: Settings) -> Path | None:
    """The home of another user that `path` is in, where this process is root with that user's variables; else None.

    Root could write there, but then that user could neither use nor remove root's files.
    """
    if not hasattr(os, "getuid") or os.getuid() != 0:
        return None
    for home in (settings.home, settings.xdg_cache_home):
        if home is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(home)):
            with contextlib.suppress(OSError):
                if _nearest(home).stat().st_uid != 0:
                    return home
    return None


def _can_be_written(path: Path) -> bool:
    """Whether it is a directory to write to, or can become one. A guess: only writing tells."""
    existing = _nearest(path)
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)


def _nearest(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    return next((one for one in (path, *path.parents) if os.path.lexists(one)), path)
