# SPDX-License-Identifier: Apache-2.0
"""Which files and directories may be believed: those that only this user or root could have written."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(Exception):
    """Another user could have written this; the text says which path and why."""


def require_trusted_dir(path: Path) -> None:
    """Raises UntrustedError, or OSError where the directory cannot be looked at."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UntrustedError(f"{path} is not a directory")
    _require_ours(path, status)


def read_trusted(path: Path) -> bytes:
    """The content. Raises UntrustedError, or OSError (ELOOP for a symbolic link).

    Owner and mode are those of the opened file, so exchanging the name in between gains nothing.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedError(f"{path} is not a regular file")
        _require_ours(path, status)
        return file.read()


def make_private_dir(path: Path) -> None:
    """Makes the directory, 0700, unless it is there already. Raises UntrustedError or OSError."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    require_trusted_dir(path)


def write_private(path: Path, content: str | bytes) -> None:
    """Writes a new file, 0600, through to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(descriptor)


def _require_ours(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.getuid(), 0):
        raise UntrustedError(f"{path} belongs to user {status.st_uid}, not to {os.getuid()} or root")
    if status.st_mode & _OTHERS_WRITE:
        raise UntrustedError(f"{path} can be written by others (run: chmod go-w {path})")
