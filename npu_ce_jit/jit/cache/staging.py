# SPDX-License-Identifier: Apache-2.0
"""The directories that builds work in, one each, on the cache's file system, and how dead builders' are found."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".b-"
_ALIVE = ".alive"  # its builder holds a lock on this file, which ends with the process, however that ends
_YOUNG_SECONDS = 5.0  # younger ones are alive: the builder may not have locked the file yet
_ABANDONED_SECONDS = 86400.0  # older ones are dead, where the file system has no locks


@contextlib.contextmanager
def staging_dir(key_dir: Path) -> Iterator[Path]:
    """A private directory below `key_dir`, gone at the end. Raises OSError."""
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{socket.gethostname()}-{os.getpid()}-", dir=key_dir))
    try:
        descriptor = os.open(directory / _ALIVE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: see _ABANDONED_SECONDS
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield directory
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def dead_staging_dirs(layout_dir: Path) -> Iterator[Path]:
    """The staging directories whose builder has ended. Raises nothing."""
    for directory in layout_dir.glob(f"*/{PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_dead(directory):
                yield directory


def _is_dead(directory: Path) -> bool:
    age = abs(time.time() - directory.stat().st_mtime)  # abs: the clock may have been set back
    if age < _YOUNG_SECONDS:
        return False
    try:
        descriptor = os.open(directory / _ALIVE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES) and age > _ABANDONED_SECONDS
    else:
        return True
    finally:
        os.close(descriptor)
