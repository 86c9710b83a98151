# SPDX-License-Identifier: Apache-2.0
"""The launch reports of the virtual CANN in this process, and its fault injection."""

from __future__ import annotations

import ctypes
import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _library() -> ctypes.CDLL:
    library = _runtime()
    if not is_virtual():
        run = Path(__file__).with_name("run")
        raise RuntimeError(f"libascendcl.so is not the virtual CANN's: start the program with {run}")
    library.virtual_cann_reports.restype = ctypes.c_char_p
    library.virtual_cann_clear_reports.restype = None
    library.virtual_cann_set_faults.argtypes = [ctypes.c_char_p]
    library.virtual_cann_run_every_nth_block.argtypes = [ctypes.c_uint32]
    library.virtual_cann_run_every_nth_block.restype = None
    library.aclGetRecentErrMsg.restype = ctypes.c_char_p
    return library


def _runtime() -> ctypes.CDLL:
    # By soname: finds the loaded library whatever its path, and otherwise searches the loader's path.
    return ctypes.CDLL("libascendcl.so")


def is_virtual() -> bool:
    """Whether this process has loaded the virtual CANN's runtime, not a board's, which has no reports."""
    return hasattr(_runtime(), "virtual_cann_reports")


def reports() -> list[dict[str, Any]]:
    """The machine's reports of the last 1000 finished kernel launches, oldest first."""
    loaded: list[dict[str, Any]] = json.loads(_library().virtual_cann_reports())
    return loaded


def clear_reports() -> None:
    _library().virtual_cann_clear_reports()


def run_every_nth_block(n: int) -> None:
    """From now on, runs every n-th block of a launch only, and the last one. A report counts those that ran; an
    estimate takes the others to be like them. The others' results are not written. For the cost of problems that are
    too large to run."""
    _library().virtual_cann_run_every_nth_block(n)


def set_faults(text: str) -> None:
    """Replaces the faults of VIRTUAL_CANN_FAULTS; same grammar. Counts start anew; "" removes all faults."""
    if _library().virtual_cann_set_faults(text.encode()):
        raise ValueError((_library().aclGetRecentErrMsg() or b"").decode())


def clear_errors() -> None:
    """Clears the errors of failed streams and lost devices, as a new process would."""
    _library().virtual_cann_clear_errors()
