# SPDX-License-Identifier: Apache-2.0
"""The exit codes of the processes that a build starts, in a program that throws those of its children away."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def exit_codes_kept() -> Iterator[None]:
    """Has this process's children, and theirs, end as usual where SIGCHLD is ignored.

    The kernel then tells nobody how a child ended, and Python takes that for success. Programs inherit it: g++ and old
    releases of ninja stop at it. What ends meanwhile without being waited for goes at the end, as it would have.
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
    """Python's own function works in the main thread only."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(ctypes.c_int(signal.SIGCHLD), ctypes.c_void_p(action))
