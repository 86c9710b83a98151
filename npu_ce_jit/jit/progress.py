# SPDX-License-Identifier: Apache-2.0
"""What a person sees while the library is built."""

from __future__ import annotations

import logging
import re
import sys
import time

_logger = logging.getLogger("npu_ce_jit")

_HEARTBEAT_SECONDS = 10.0
_STEP = re.compile(r"^\[(\d+)/(\d+)\] ", re.MULTILINE)  # ninja's status, see NINJA_STATUS in build.py


class Heartbeat:
    """Says when it is time for another sign of life: after `first_seconds`, then every 10 s."""

    def __init__(self, first_seconds: float = _HEARTBEAT_SECONDS) -> None:
        self._start = time.monotonic()
        self._next = self._start + first_seconds

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def is_due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _HEARTBEAT_SECONDS
        return True


class BuildProgress:
    """A line at the start and at the end; in between one moving line on a terminal, else a line every 10 s."""

    def __init__(self, what: str, where: str) -> None:
        _logger.info("building %s in %s; this happens once", what, where)
        self._heartbeat = Heartbeat()
        self._shown = ""

    def show(self, log: str) -> None:
        """Takes ninja's output so far."""
        steps = _STEP.findall(log)
        step = f"[{steps[-1][0]}/{steps[-1][1]}]" if steps else ""
        if _is_terminal():
            if step != self._shown:
                _write(f"\r{step} ")
                self._shown = step
        elif self._heartbeat.is_due():
            _logger.info("still building%s, %.0f s", f" {step}" if step else "", self._heartbeat.age)

    def end(self, *, built: bool) -> None:
        if self._shown:
            _write("\r\033[K")
        _logger.info("%s after %.1f s", "built" if built else "the build failed", self._heartbeat.age)


def _is_terminal() -> bool:
    try:
        return _logger.isEnabledFor(logging.INFO) and sys.stderr.isatty()
    except (AttributeError, ValueError):  # None under pythonw, or closed
        return False


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, ValueError, OSError):
        pass  # whoever closed stderr does not want to see it
