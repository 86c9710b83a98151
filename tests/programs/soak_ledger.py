# SPDX-License-Identifier: Apache-2.0
"""How the processes of a soak share events and their state, which remain however they end."""

from __future__ import annotations

import mmap
import os
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AMISS = "amiss: "  # prefix of events that must never happen
PHASES = ("between", "looking", "waiting", "preparing", "compiling", "publishing", "recording", "loading")


class Ledger:
    """Events, appended as one line each; and in shared memory whether the soak is over, and each member's phase."""

    def __init__(self, directory: Path, members: int) -> None:
        self._events_file = directory / "events"
        self._events = os.open(self._events_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._shared = mmap.mmap(-1, 1 + members)
        self.evidence_file = directory / "evidence"  # tracebacks, of Python and of faulthandler
        self.evidence = self.evidence_file.open("a", encoding="utf-8", buffering=1)

    def count(self, event: str) -> None:
        os.write(self._events, f"{event}\n".encode())

    @contextmanager
    def witness(self, who: str) -> Iterator[None]:
        """Reports any exception as a fault."""
        try:
            yield
        except BaseException as error:
            self.count(f"{AMISS}{type(error).__name__} in {who}")
            traceback.print_exc(file=self.evidence)
            raise

    def totals(self) -> Counter[str]:
        return Counter(self._events_file.read_text("utf-8").splitlines())

    @property
    def is_over(self) -> bool:
        return bool(self._shared[0])

    def end(self) -> None:
        self._shared[0] = 1

    def phase(self, member: int) -> str:
        return PHASES[self._shared[1 + member]]

    def enter(self, member: int, phase: str) -> str:
        """Enters a phase; returns the phase before."""
        before = self.phase(member)
        self._shared[1 + member] = PHASES.index(phase)
        return before
