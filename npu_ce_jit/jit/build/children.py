# SPDX-License-Identifier: Apache-2.0
"""Keeps the exit codes of the processes that a build starts, in a program that ignores SIGCHLD."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def exit_codes_kept() -> Iterator[None]:
    """Restores the default action of SIGCHLD for this process and the children it starts, where it is ignored.

    With SIGCHLD ignored the kernel keeps no exit code, and Python takes that for success. Children inherit it: g++ and
    old releases of ninja fail under it. Other children that end meanwhile are reaped at the end, as the kernel would.
    """
    if signal.getsignal(signal.SIGCHLD) != signal.SIG_IGN:
        yield
        return
    _set(signal.SIG_DFL)
    try:
        yield
    finally:
        _set(signal.SIG_IGN)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _set(action: signal.Handlers) -> None:
    """By libc, since Python's signal.signal works in the main thread only."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(ctypes.c_int(signal.SIGCHLD), ctypes.c_void_p(action))
