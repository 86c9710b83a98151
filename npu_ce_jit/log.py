# SPDX-License-Identifier: Apache-2.0
"""Where this package's messages go: to standard error, unless the program has set up logging itself."""

from __future__ import annotations

import logging
import sys


class _StderrHandler(logging.Handler):
    """Looks at sys.stderr and at the root logger anew for each message: notebooks and test runners exchange both."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return  # the program's own handlers print it
        try:
            sys.stderr.write(f"npu_ce_jit: {self.format(record)}\n")
            sys.stderr.flush()
        except (AttributeError, ValueError, OSError):
            pass  # no standard error, or a closed one: there is nobody to tell


def set_up_log(level: int) -> None:
    """Sets the level of the logger `npu_ce_jit`; prints only if nobody else would."""
    logger = logging.getLogger("npu_ce_jit")
    if logger.level == logging.NOTSET:
        logger.setLevel(level)
    if not logger.handlers:
        logger.addHandler(_StderrHandler())
