# SPDX-License-Identifier: Apache-2.0
"""Which files and directories may be trusted: those that only this user or root could have written."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_UID_MAP = Path("/proc/self/uid_map")
_ALL_USERS = ["0", "0", "4294967295"]  # what it holds outside of user namespaces
_OVERFLOW_UID = 65534  # the uid that the kernel shows for users unknown to a namespace


class UntrustedError(Exception):
    """Another user could have written this: which path and why, and what this user can do about it."""

    def __init__(self, fact: str, hint: str) -> None:
        super().__init__(fact, hint)
        self.fact = fact
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.fact} ({self.hint[0].lower()}{self.hint[1:]})"


def require_trusted_dir(path: Path) -> None:
    """Raises UntrustedError, or OSError where the directory cannot be looked at."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UntrustedError(f"{path} is not a directory", "Move it away")
    _require_ours(path, status)


def read_trusted(path: Path) -> bytes:
    """The content. Raises UntrustedError, or OSError (ELOOP for a symbolic link).

    Owner and mode are those of the opened file, so another file put in its place meanwhile is not trusted.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedError(f"{path} is not a regular file", "Move it away")
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
        raise UntrustedError(
            f"{path} belongs to user {status.st_uid}, not to {os.getuid()} or root", _hint_for_foreign(path, status)
        )
    if status.st_mode & _OTHERS_WRITE:
        raise UntrustedError(f"{path} can be written by others", _hint_for_writable(path, status))


def _hint_for_writable(path: Path, status: os.stat_result) -> str:
    """One command for all that is wrong below `path`: a directory is checked before its content."""
    top = path if stat.S_ISDIR(status.st_mode) else path.parent
    command = f"chmod -R go-w {_quoted(top)}"
    if os.getuid() in (status.st_uid, 0):
        return f"Run: {command}"
    return _place_of_ones_own(top) or f"Have user {status.st_uid} run: {command}"


def _hint_for_foreign(path: Path, status: os.stat_result) -> str:
    if status.st_uid == _OVERFLOW_UID and _is_in_user_namespace():
        return (
            "In this user namespace root's files have no owner, nor have those of others: where you trust them, run "
            f"cp -r {_quoted(path)} DIR, and name DIR in the place of it"
        )
    return _place_of_ones_own(path) or "Set NPU_CE_JIT_CACHE_DIR to a directory of your own"


def _place_of_ones_own(directory: Path) -> str | None:
    """What to do where this user may write to another's directory."""
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        return None
    own = _quoted(directory / f"npu_ce_jit-{os.getuid()}")
    return f"Set NPU_CE_JIT_CACHE_DIR={own}, a directory of your own below it"


def _is_in_user_namespace() -> bool:
    with contextlib.suppress(OSError):
        return _UID_MAP.read_text("utf-8").split() != _ALL_USERS
    return False


def _quoted(path: Path) -> str:
    import shlex  # not imported by torch; only a refusal needs it

    return shlex.quote(str(path))
