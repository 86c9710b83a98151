# SPDX-License-Identifier: Apache-2.0
"""Where the cache may be: the directories, in order, and which of them can be built in."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from npu_ce_jit.jit.cache.permissions import make_private_dir
from npu_ce_jit.settings import Settings

_LAYOUT = "v1"


class Root:
    """A directory that may hold the cache, and what asked for it. Nothing is ever written to one that is read-only."""

    def __init__(self, path: Path, origin: str, *, read_only: bool = False) -> None:
        self.path: Final = path
        self.origin: Final = origin
        self.read_only: Final = read_only

    @property
    def layout_dir(self) -> Path:
        """Without symbolic links: the root may be one, but must not lead elsewhere after its target was checked."""
        return Path(os.path.realpath(self.path)) / _LAYOUT

    def make_layout_dir(self) -> Path:
        """Raises UntrustedError, or OSError where no library could be built or loaded."""
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
    """Where the user asked for it, what somebody built for many, and a private directory in TMPDIR.

    Where the user's place cannot be written, the next of NPU_CE_JIT_CACHE_DIR, XDG_CACHE_HOME and HOME follows it. What
    is prebuilt comes after these: they hold something only where the prebuilt libraries did not serve.
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"  # Windows finds nothing and builds nothing
    return (
        *_own_roots(settings),
        *(Root(path, "NPU_CE_JIT_PREBUILT_DIR", read_only=True) for path in settings.prebuilt_dirs),
        Root(settings.tmp_dir / f"npu_ce_jit-{user}", "TMPDIR"),
    )


def _own_roots(settings: Settings) -> Iterator[Root]:
    for base, name, origin in (
        (settings.cache_dir, "", "NPU_CE_JIT_CACHE_DIR"),
        (settings.xdg_cache_home, "npu_ce_jit", "XDG_CACHE_HOME"),
        (settings.home, ".cache/npu_ce_jit", "HOME"),
    ):
        if base is not None:
            yield Root(base / name, origin)
            if _can_be_written(base / name):
                return


def _can_be_written(path: Path) -> bool:
    """Whether it is a directory, or can become one. A guess: only writing tells."""
    existing = next((one for one in (path, *path.parents) if os.path.lexists(one)), path)
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)
