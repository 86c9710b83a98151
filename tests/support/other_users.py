# SPDX-License-Identifier: Apache-2.0
"""Runs code as another user, or in a user namespace, in forked children."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from toy_package import exit_code, fork

UID = 12345  # an unused user id
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER, _PR_SET_DUMPABLE = 0x10000000, 4  # from linux/sched.h and linux/prctl.h

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which root alone can")

_TORCH_DIR = Path(torch.__file__).parent
_PRIVATE = next((path for path in _TORCH_DIR.parents if not path.stat().st_mode & stat.S_IXOTH), None)
# The other user's compiler must be able to read torch's headers.
needs_a_torch_that_all_can_read = pytest.mark.skipif(
    _PRIVATE is not None, reason=f"no other user reaches {_TORCH_DIR}: {_PRIVATE} is private"
)


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that every user can reach, with a subdirectory of UID's. pytest's own directories are private."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    (directory / "user").mkdir()
    os.chown(directory / "user", UID, UID)
    yield directory
    shutil.rmtree(directory)


def as_another_user(task: Callable[[], object]) -> None:
    """Runs `task` as user UID, without privileges or home; fails the test where it fails."""

    def run() -> None:
        _become(UID)
        task()

    assert exit_code(fork(run)) == 0


def in_user_namespace(task: Callable[[], object]) -> None:
    """The same in a user namespace that maps only UID, as in a rootless container."""

    def run() -> None:
        _enter_user_namespace()
        task()

    assert exit_code(fork(run)) == 0


def run_hint(hint: str) -> None:
    """Runs the command that a message gives, as a reader would."""
    subprocess.run(re.split("(?i)run: ", hint)[-1].rstrip(")"), shell=True, check=True)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.environ["HOME"] = "/nowhere"


def _enter_user_namespace() -> None:
    """Raises OSError where this kernel forbids user namespaces to users."""
    _become(UID)
    _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # otherwise root owns the process's files in /proc
    if _LIBC.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{UID} {UID} 1"), ("gid_map", f"{UID} {UID} 1")):
        Path(f"/proc/self/{name}").write_text(text, "ascii")


@functools.cache
def _refusal_of_namespaces() -> str | None:
    if os.getuid() != 0:
        return "only root becomes another user"
    reader, writer = os.pipe()

    def try_it() -> None:
        try:
            _enter_user_namespace()
        except OSError as error:
            os.write(writer, str(error).encode())

    exit_code(fork(try_it))
    os.close(writer)
    with open(reader, "rb") as said:
        return said.read().decode() or None


needs_user_namespaces = pytest.mark.skipif(
    _refusal_of_namespaces() is not None,
    reason=f"needs a user namespace of its own: {_refusal_of_namespaces()}",
)
