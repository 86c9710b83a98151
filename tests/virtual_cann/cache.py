# SPDX-License-Identifier: Apache-2.0
"""The cache of built things: an entry is whole or absent, however many processes ask for it first."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_UNUSED_FOR = 30 * 24 * 3600  # seconds after which an entry is removed


class PreparationError(Exception):
    """Something is missing or fails; the text says what, and how to mend it."""


def cache_dir(variables: Mapping[str, str]) -> Path:
    """The cache directory, made if it is absent. Its content is executed, so nobody else may be able to write to it."""
    if variables.get("VIRTUAL_CANN_CACHE_DIR"):
        directory = Path(variables["VIRTUAL_CANN_CACHE_DIR"]).absolute()
    else:
        base = variables.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        directory = Path(base).absolute() / "virtual_cann"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise PreparationError(f"cannot make the cache {directory}: {error}. Set VIRTUAL_CANN_CACHE_DIR.") from error
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PreparationError(
            f"{directory} belongs to another user, or others can write to it, and it would hold code that runs. "
            f"Run `chmod go-w {directory}`, or set VIRTUAL_CANN_CACHE_DIR to a directory of your own."
        )
    return directory


def build_once(path: Path, what: str | None, build: Callable[[Path], None]) -> Path:
    """`path`, filled by `build` in a private directory and published by one rename. `what`, if any, is told on stderr.

    The lock only saves work: where locks do not work, the first to publish wins and the others' results are discarded.
    """
    if path.exists():
        _touch(path)
        return path
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path
        if what is not None:
            sys.stderr.write(f"virtual_cann: {what} (once; kept in {path.parent.parent})\n")
        private = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            build(private)
            os.rename(private, path)
            _prune(path.parent)
        except OSError:
            if not path.exists():
                raise
        finally:
            shutil.rmtree(private, ignore_errors=True)
    return path


def _touch(path: Path) -> None:
    """Sets the time of last use, except in a read-only cache."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _prune(directory: Path) -> None:
    """Removes entries that have been unused for 30 days: each change of the sources leaves one behind."""
    oldest = time.time() - _UNUSED_FOR
    for entry in directory.iterdir():
        with contextlib.suppress(OSError):  # another process may have removed it
            if entry.is_dir() and entry.stat().st_mtime < oldest:
                gone = directory / f".{entry.name.lstrip('.')}.gone"  # nobody finds a half-removed entry
                os.rename(entry, gone)
                shutil.rmtree(gone, ignore_errors=True)
