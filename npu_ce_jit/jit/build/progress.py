# SPDX-License-Identifier: Apache-2.0
"""What a person sees while the library is built."""

from __future__ import annotations

import logging
import re
import sys
import time

_logger = logging.getLogger("npu_ce_jit")

_HEARTBEAT_SECONDS = 10.0
_STEP = re.compile(r"^\[(\d+)/(\d+)\] ", re.MULTILINE)  # ninja's status, see NINJA_STATUS in compile.py


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
    """Says where and why something is built, and how that ended; a context manager around one build.

    In between, it rewrites one line in a terminal or a notebook, and logs a line every 10 s elsewhere.
    """

    def __init__(self, what: str, where: str, why: str) -> None:
        _logger.info("building %s in %s: %s", what, where, why)
        self._heartbeat = Heartbeat()
        self._shown = ""

    def __enter__(self) -> BuildProgress:  # noqa: PYI034  typing.Self is of Python 3.11
        return self

    def show(self, log: str) -> None:
        """Takes ninja's output so far."""
        steps = _STEP.findall(log)
        step = f"[{steps[-1][0]}/{steps[-1][1]}] " if steps else ""
        if _renders_a_moving_line():
            self._move(f"npu_ce_jit: {step}{self._heartbeat.age:.0f} s")
        elif self._heartbeat.is_due():
            _logger.info("still building: %s%.0f s", step, self._heartbeat.age)

    def say(self, text: str) -> None:
        """Logs a message during the build."""
        self._wipe()
        _logger.info("%s", text)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._wipe()
        seconds = self._heartbeat.age
        if error is None:
            _logger.info("built in %.1f s", seconds)
        elif issubclass(error, KeyboardInterrupt):
            _logger.info("interrupted after %.1f s; the compilers are stopped, the next import or call builds", seconds)
        else:
            _logger.info("the build failed after %.1f s", seconds)

    def _wipe(self) -> None:
        if self._shown:
            _write(f"\r{' ' * len(self._shown)}\r")
            self._shown = ""

    def _move(self, text: str) -> None:
        """Pads with spaces over the old text, since no escape sequence clears a line in a notebook too."""
        if text != self._shown:
            _write(f"\r{text.ljust(len(self._shown))}")
            self._shown = text


def _renders_a_moving_line() -> bool:
    """Whether standard error obeys a carriage return, as a terminal and a notebook's cell do, and is ours to write to.

    A notebook's stream says that it is no terminal, so it is known by the module of its class.
    """
    if not _logger.isEnabledFor(logging.INFO) or logging.getLogger().handlers:
        return False  # the level hides it, or the program's own handlers print it
    try:
        return sys.stderr.isatty() or type(sys.stderr).__module__.partition(".")[0] == "ipykernel"
    except (AttributeError, ValueError):  # None under pythonw, or closed
        return False


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, ValueError, OSError):
        pass  # no standard error, or a closed one
