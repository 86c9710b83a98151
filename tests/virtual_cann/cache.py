# SPDX-License-Identifier: Apache-2.0
"""Where built things are kept: each one whole or absent, however many processes want it first."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


class PreparationError(Exception):
    """Something is missing or refuses; the text says what, and what to do."""


def cache_dir(variables: Mapping[str, str]) -> Path:
    """The cache, made if it is absent. It holds code that runs, so nobody else may be able to write to it."""
    if variables.get("VIRTUAL_CANN_CACHE_DIR"):
        directory = Path(variables["VIRTUAL_CANN_CACHE_DIR"]).absolute()
    else:
        base = variables.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        directory = Path(base).absolute() / "npu_ce_jit" / "virtual_cann"
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


def build_once(path: Path, what: str, build: Callable[[Path], None]) -> Path:
    """`path`, filled by `build` in a private directory and published by one rename.

    The lock only saves work: where it does not hold, the first to publish wins and the others throw theirs away.
    """
    if path.exists():
        return path
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path
        sys.stderr.write(f"virtual_cann: {what} (once; kept in {path.parent.parent})\n")
        private = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            build(private)
            os.rename(private, path)
        except OSError:
            if not path.exists():
                raise
        finally:
            shutil.rmtree(private, ignore_errors=True)
    return path
