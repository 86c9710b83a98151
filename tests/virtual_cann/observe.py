# SPDX-License-Identifier: Apache-2.0
"""What the virtual CANN of this process saw, and what shall go wrong in it."""

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
    # By soname: the library that is loaded already, wherever it lies. Without one, the loader's search path decides.
    return ctypes.CDLL("libascendcl.so")


def is_virtual() -> bool:
    """Whether this process has the virtual CANN's runtime, and not a board's, which has no reports."""
    return hasattr(_runtime(), "virtual_cann_reports")


def reports() -> list[dict[str, Any]]:
    """The machine's reports of the last 1000 kernel launches that are over, oldest first."""
    loaded: list[dict[str, Any]] = json.loads(_library().virtual_cann_reports())
    return loaded


def clear_reports() -> None:
    _library().virtual_cann_clear_reports()


def run_every_nth_block(n: int) -> None:
    """Of launches from now on, the last block among them: a report counts what these do, and takes the others to be
    like them; what those would have written is not. For the cost of problems that are too large to run."""
    _library().virtual_cann_run_every_nth_block(n)


def set_faults(text: str) -> None:
    """Replaces what VIRTUAL_CANN_FAULTS asked for, by its grammar; counts begin anew. "" ends all faults."""
    if _library().virtual_cann_set_faults(text.encode()):
        raise ValueError((_library().aclGetRecentErrMsg() or b"").decode())


def clear_errors() -> None:
    """Forgets failed streams and lost devices, as a new process would."""
    _library().virtual_cann_clear_errors()
