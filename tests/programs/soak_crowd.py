# SPDX-License-Identifier: Apache-2.0
"""The processes of a soak: which are alive, which are killed or stopped in which step, and how each ended."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from soak_ledger import AMISS, Ledger

HANG_SECONDS = 60.0
WITNESS_SECONDS = 0.5  # for the tracebacks to be written

_PR_SET_CHILD_SUBREAPER = 36
_BUILDING = ("compiling", "linking")


class _One(NamedTuple):
    member: int
    since: float


class Crowd:
    """Members in a fixed number of places; `others` are processes that run until the soak's end."""

    def __init__(self, size: int, ledger: Ledger) -> None:
        self._ledger = ledger
        self._running: dict[int, _One] = {}
        self._others: dict[int, str] = {}
        self._free = set(range(size))
        self._killed: set[int] = set()
        self._stopped: dict[int, float] = {}  # pid -> when it continues
        self.longest = 0.0  # seconds of the longest visit, without stopped time
        # Compilers whose builder was killed become children of this process, so they are all seen.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def is_empty(self) -> bool:
        return not self._running

    def free_member(self) -> int | None:
        return next(iter(self._free), None)

    def add(self, member: int, pid: int) -> None:
        self._free.remove(member)
        self._running[pid] = _One(member, time.monotonic())

    def add_other(self, name: str, pid: int) -> None:
        self._others[pid] = name

    def kill(self, what: str, phase: str) -> bool:
        """Kills a member in this phase, its compilers, or both; returns whether there was one."""
        for pid in random.sample(list(self._running), len(self._running)):
            if pid not in (*self._stopped, *self._killed) and self._phase(pid) == phase:
                children = _descendants(pid)
                if what == "compiler" and not children:
                    continue
                victims = {"python": [pid], "compiler": [random.choice(children or [pid])], "all": [pid, *children]}
                if what != "compiler":
                    self._killed.add(pid)
                for victim in victims[what]:
                    _signal(victim, signal.SIGKILL)
                self._ledger.count(f"kill -9: {what}, while {phase}")
                return True
        return False

    def stop_builders(self, seconds: float) -> None:
        """One builder is stopped until the end, with its lock and its directory; and always another one for a while."""
        now = time.monotonic()
        for pid in [pid for pid, until in self._stopped.items() if until < now]:
            self._go_on(pid)
        if len(self._stopped) < 2:
            free = [pid for pid in self._running if pid not in (*self._stopped, *self._killed)]
            building = [pid for pid in free if self._phase(pid) in _BUILDING]
            for pid in building[:1]:
                self._stopped[pid] = now + seconds if self._stopped else math.inf
                _signal(pid, signal.SIGSTOP)
                self._ledger.count(f"stopped: while {self._phase(pid)}")

    def go_on(self) -> None:
        for pid in list(self._stopped):
            self._go_on(pid)

    def has_only_stopped(self) -> bool:
        return set(self._running) <= set(self._stopped)

    def look_after(self) -> None:
        """Reports members that hang, and how members ended. To be called repeatedly."""
        for pid, one in self._running.items():
            if pid not in (*self._stopped, *self._killed) and time.monotonic() - one.since > HANG_SECONDS:
                self._ledger.count(f"{AMISS}hung while {self._phase(pid)}")
                self._end(pid)
        self._reap()
        time.sleep(0.005)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self.look_after()

    def wait_for_others(self) -> None:
        """Waits for the other processes, which see the end of the soak themselves."""
        deadline = time.monotonic() + HANG_SECONDS
        while self._others and time.monotonic() < deadline:
            self.look_after()
        for pid, name in self._others.items():
            self._ledger.count(f"{AMISS}{name} hung")
            self._end(pid)

    def kill_all(self) -> None:
        """Kills all descendants, whatever happened."""
        for pid in _descendants(os.getpid()):
            _signal(pid, signal.SIGKILL)

    def orphans_left(self) -> int:
        """The number of compilers that outlived their builder, and still run after the time that a build takes."""
        deadline = time.monotonic() + HANG_SECONDS / 2
        while (left := _descendants(os.getpid())) and time.monotonic() < deadline:
            self.look_after()
        return len(left)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid in self._running:
                one = self._running.pop(pid)
                self._free.add(one.member)
                self.longest = max(self.longest, time.monotonic() - one.since)
                self._stopped.pop(pid, None)
                if code != 0 and not (code == -signal.SIGKILL and pid in self._killed):
                    self._ledger.count(f"{AMISS}a member ended with {code}")
            elif pid in self._others:
                name = self._others.pop(pid)
                if code != 0 and pid not in self._killed:
                    self._ledger.count(f"{AMISS}{name} ended with {code}")
            else:
                self._ledger.count("orphans: a compiler outlived its builder")
            self._killed.discard(pid)

    def _go_on(self, pid: int) -> None:
        del self._stopped[pid]
        self._running[pid] = self._running[pid]._replace(since=time.monotonic())
        _signal(pid, signal.SIGCONT)

    def _phase(self, pid: int) -> str:
        phase = self._ledger.phase(self._running[pid].member)
        if phase == "compiling" and any(b"-shared" in _command(child) for child in _descendants(pid)):
            return "linking"
        return phase

    def _end(self, pid: int) -> None:
        """Kills the process, after it has written its tracebacks."""
        self._killed.add(pid)
        _signal(pid, signal.SIGUSR1)
        time.sleep(WITNESS_SECONDS)
        _signal(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split():
            found += [int(child), *_descendants(int(child))]
    return found


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
