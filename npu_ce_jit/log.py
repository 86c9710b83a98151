# SPDX-License-Identifier: Apache-2.0
"""Where this package's messages go: to standard error, unless the program has set up logging itself."""

from __future__ import annotations

import logging
import sys
import warnings


class _StderrHandler(logging.Handler):
    """Looks at sys.stderr and at the root logger anew for each message: notebooks and test runners replace both."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return  # the program's own handlers print it
        try:
            sys.stderr.write(f"npu_ce_jit: {self.format(record)}\n")
            sys.stderr.flush()
        except (AttributeError, ValueError, OSError):
            pass  # no standard error, or a closed one: there is nobody to tell


def set_up_log(level: int) -> None:
    """Gives the logger `npu_ce_jit` a level and a handler for standard error, unless the program has given it them."""
    logger = logging.getLogger("npu_ce_jit")
    if logger.level == logging.NOTSET:
        logger.setLevel(level)
    if not logger.handlers:
        logger.addHandler(_StderrHandler())


# Packages whose frames `warn` skips on its way up the stack to the program's own line.
_BETWEEN = {"npu_ce_jit", "torch", "importlib", "contextlib"}


def warn(message: str) -> None:
    """Issues a RuntimeWarning that points at the line of the program that led here."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    place = frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")
    warnings.warn_explicit(message, RuntimeWarning, *place, registry)
