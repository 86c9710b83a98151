# SPDX-License-Identifier: Apache-2.0
"""Directories that refuse writes: full, read-only, noexec, without permission. For forked children."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_package import exit_code, fork

_LIBC = ctypes.CDLL(None, use_errno=True)
# From linux/sched.h, sys/mount.h, linux/prctl.h and linux/capability.h.
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_RDONLY, _MS_NOEXEC, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 8, 32, 16384, 1 << 18
_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_CAPABILITY_VERSION_3 = 0x20080522


def have_own_mounts() -> None:
    """Makes later mounts visible to this process and its children only. Raises OSError."""
    uid, gid = os.getuid(), os.getgid()
    _check(_LIBC.unshare(_CLONE_NEWNS | (0 if uid == 0 else _CLONE_NEWUSER)))
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text, "ascii")
    _mount("none", Path("/"), "", _MS_REC | _MS_PRIVATE)


def mount_tmpfs(path: Path, options: str = "", *, noexec: bool = False) -> None:
    """Mounts an empty tmpfs at `path`, which is created."""
    path.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", path, "tmpfs", _MS_NOEXEC if noexec else 0, ",".join(filter(None, ("mode=700", options))))


def make_read_only(path: Path) -> None:
    """Makes the tmpfs at `path` read-only, with its content."""
    _mount("tmpfs", path, "tmpfs", _MS_REMOUNT | _MS_RDONLY)


def obey_permissions() -> None:
    """Drops root's right to ignore permissions, also for programs that it starts."""
    if os.getuid() != 0:
        return
    data = (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_LIBC.capget(header, data))
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        _check(_LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0))
        for index in range(2):  # effective and permitted
            data[index] &= ~(1 << capability)
    _check(_LIBC.capset(header, data))


def _mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    _check(_LIBC.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def in_own_mounts(task: Callable[[], object]) -> None:
    """Runs `task` in a child with its own mounts, and fails the test where it fails."""

    def run() -> None:
        have_own_mounts()
        task()

    assert exit_code(fork(run)) == 0


@functools.cache
def _refusal_of_mounts() -> str | None:
    reader, writer = os.pipe()

    def try_it() -> None:
        try:
            have_own_mounts()
        except OSError as error:
            os.write(writer, str(error).encode())

    exit_code(fork(try_it))
    os.close(writer)
    with open(reader, "rb") as said:
        return said.read().decode() or None


needs_mounts = pytest.mark.skipif(
    _refusal_of_mounts() is not None,
    reason=f"needs a mount namespace of its own, and the kernel says: {_refusal_of_mounts()}",
)
