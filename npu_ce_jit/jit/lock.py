# SPDX-License-Identifier: Apache-2.0
"""One builder at a time on a node. The lock only saves work: whatever goes wrong with it, building goes on."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from npu_ce_jit.jit.progress import Heartbeat
from npu_ce_jit.jit.trust import UntrustedError, make_private_dir
from npu_ce_jit.settings import Settings

if TYPE_CHECKING:
    from filelock import BaseFileLock

_logger = logging.getLogger("npu_ce_jit")

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  local to the node, where home may be on a network disk
_POLL_SECONDS = 0.1
_FIRST_MESSAGE_SECONDS = 1.0

T = TypeVar("T")


@contextlib.contextmanager
def build_lock(name: str, settings: Settings, find: Callable[[], T | None]) -> Iterator[T | None]:
    """Gives what `find` finds as soon as it finds something, else None once it is this process's turn to build.

    It is also our turn after `settings.lock_timeout` seconds, or if the lock cannot be used at all.
    """
    lock: BaseFileLock | None = None
    try:
        lock = _acquire(name, settings, lambda: find() is not None)
    except (OSError, UntrustedError, NotImplementedError, ImportError) as error:
        _logger.warning("building without a lock: %s", error)
    try:
        yield find()
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                lock.release()


def _acquire(name: str, settings: Settings, is_found: Callable[[], bool]) -> BaseFileLock | None:
    """The held lock, or None once waiting makes no more sense. Raises OSError or UntrustedError."""
    from filelock import FileLock, Timeout  # 15 ms that a warm import does not spend

    stem = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    lock_file = _lock_dir(settings) / f"{stem}.lock"
    owner_file = lock_file.with_suffix(".owner")
    lock = FileLock(lock_file, mode=0o600, thread_local=False)
    deadline = time.monotonic() + settings.lock_timeout
    heartbeat = Heartbeat(_FIRST_MESSAGE_SECONDS)
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pass
        else:
            owner_file.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
            return lock
        if is_found():
            return None
        if time.monotonic() >= deadline:
            _logger.warning("waited %.0f s for %s; building as well", settings.lock_timeout, _owner(owner_file))
            return None
        if heartbeat.is_due():
            _logger.info("waiting for %s, which builds the same (%.0f s)", _owner(owner_file), heartbeat.age)
        time.sleep(_POLL_SECONDS)


def _lock_dir(settings: Settings) -> Path:
    for base in (_SHARED_MEMORY, settings.tmp_dir):
        if os.access(base, os.W_OK):
            private_dir = base / f"npu_ce_jit-{os.getuid()}"
            make_private_dir(private_dir)
            make_private_dir(private_dir / "locks")
            return private_dir / "locks"
    raise OSError(f"neither {_SHARED_MEMORY} nor {settings.tmp_dir} can be written")


def _owner(owner_file: Path) -> str:
    try:
        return owner_file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return "another process"
