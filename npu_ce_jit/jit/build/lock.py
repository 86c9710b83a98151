# SPDX-License-Identifier: Apache-2.0
"""One builder at a time on a node. The lock only saves work: whatever goes wrong with it, building goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from npu_ce_jit.jit.build.node import node_file
from npu_ce_jit.jit.build.progress import Heartbeat
from npu_ce_jit.jit.cache.permissions import UntrustedError
from npu_ce_jit.settings import Settings

if TYPE_CHECKING:
    from filelock import BaseFileLock

_logger = logging.getLogger("npu_ce_jit")

_POLL_SECONDS = 0.1
_FIRST_MESSAGE_SECONDS = 1.0

T = TypeVar("T")


@contextlib.contextmanager
def build_lock(name: str, settings: Settings, find: Callable[[], T | None]) -> Iterator[T | None]:
    """Waits, and yields what `find` finds as soon as it finds something, or None once it is our turn to build.

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
    from filelock import FileLock  # 15 ms that a warm import does not spend

    lock_file = node_file(settings, name, ".lock")
    owner_file = lock_file.with_suffix(".owner")
    speaker_file = node_file(settings, f"{name}: who speaks for those that wait", ".lock")
    # filelock's fallback for a kernel without flock is a plain file, which would remain if its owner were killed.
    lock, speaker = (
        FileLock(file, mode=0o600, thread_local=False, fallback_to_soft=False) for file in (lock_file, speaker_file)
    )
    deadline = time.monotonic() + settings.lock_timeout
    heartbeat = Heartbeat(_FIRST_MESSAGE_SECONDS)
    try:
        while True:
            if _is_ours(lock):
                owner_file.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
                return lock
            if is_found():
                return None
            if time.monotonic() >= deadline:
                _logger.warning("waited %.0f s for %s; building as well", settings.lock_timeout, _owner(owner_file))
                return None
            if heartbeat.is_due():
                # Of many ranks that wait, only the one that holds `speaker` says so.
                level = logging.INFO if _is_ours(speaker) else logging.DEBUG
                _logger.log(level, "waiting for %s, which builds the same (%.0f s)", _owner(owner_file), heartbeat.age)
            time.sleep(_POLL_SECONDS)
    finally:
        speaker.release()


def _is_ours(lock: BaseFileLock) -> bool:
    """Whether this process holds it by now. Raises OSError."""
    from filelock import Timeout

    try:
        if not lock.is_locked:
            lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _owner(owner_file: Path) -> str:
    try:
        return owner_file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return "another process"
