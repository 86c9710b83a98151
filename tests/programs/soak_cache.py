# SPDX-License-Identifier: Apache-2.0
"""Runs many processes that use one cache while other processes break it.

    python tests/programs/soak_cache.py [seconds] [processes]

Each process finds or builds small libraries, loads them and calls them; a library returns a number that only its key
has. Meanwhile processes and compilers are killed (kill -9) in every step, entries are damaged in every way, the cache
is cleaned, a small disk is filled, and one builder is stopped while it holds the lock. At the end, no process may have
hung, died by a signal that was not sent, got a wrong library, or grown; nothing may be left over; and every fault must
have had an effect.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import checkout_path  # noqa: F401  before what the tests share

# isort: split
import filelock  # noqa: F401  imported here once, and not in each forked process
import soak_faults
import torch.utils.cpp_extension  # noqa: F401
from soak_crowd import Crowd
from soak_faults import FAULTS
from soak_ledger import AMISS, Ledger
from soak_members import Member
from soak_scene import LOCK_SECONDS, Scene, content, set_up

from npu_ce_jit.jit.cache import inventory
from npu_ce_jit.jit.cache.store import Store

KILL_SECONDS = 0.3
KILLS = [
    *((what, phase) for phase in ("compiling", "linking") for what in ("python", "compiler", "all")),
    *(("python", phase) for phase in ("looking", "waiting", "preparing", "publishing", "recording", "loading")),
]
# Beginnings of events; a soak of a minute must have seen each of them.
MUST_HIT = (
    *FAULTS,
    *(f"kill -9: {what}, while {phase}" for what, phase in KILLS if phase not in ("looking", "preparing", "recording")),
    "kill -9: of clean",
    "stopped",
    "orphans",
    "disk full: in the compiler",
    "disk full: while publishing",
    "disk full: went on in the next root",
    "went on without the lock: its owner does not end",
    "went on without the lock: it cannot be used",
    "went on without a library",
    "healed: set aside",
    "healed: passed over",
    "healed: removed what a dead builder left",
    "reported: it does not compile",
    "reported: the compiler died",
    "one that stayed",
    "used: right",
)
SHORT_SECONDS = 60  # a shorter soak may miss some
YOUNG_SECONDS = 6.0  # a builder's directory may not be removed for 5 s, even without a lock


def soak(scene: Scene, ledger: Ledger, seconds: float, processes: int) -> None:
    """Runs the soak; returns when all processes have ended."""
    crowd = Crowd(processes, ledger)
    try:
        for task in (soak_faults.damage, soak_faults.fill, soak_faults.clean):
            crowd.add_other(task.__name__, soak_faults.start(task, scene, ledger))
        crowd.add_other("who stays", Member(processes, scene.places[0], scene, ledger).start(Member.stay))
        _use_and_kill(crowd, scene, ledger, seconds)
        crowd.wait_until(crowd.has_only_stopped)
        crowd.go_on()
        ledger.end()
        crowd.wait_for_others()
        crowd.wait_until(crowd.is_empty)
        for _ in range(crowd.orphans_left()):
            ledger.count(f"{AMISS}a compiler is still alive")
        ledger.count(f"the longest visit took {crowd.longest:.0f} s")
    finally:
        crowd.kill_all()


def _use_and_kill(crowd: Crowd, scene: Scene, ledger: Ledger, seconds: float) -> None:
    began = time.monotonic()
    wanted, next_kill = random.choice(KILLS), began
    while (now := time.monotonic()) < began + seconds:
        while (member := crowd.free_member()) is not None:
            crowd.add(member, Member(member, random.choice(scene.places), scene, ledger).start(Member.visit))
        if now > next_kill and (crowd.kill(*wanted) or now > next_kill + 1.0):
            wanted, next_kill = random.choice(KILLS), now + random.random() * KILL_SECONDS
        crowd.stop_builders(random.uniform(1, 3) * LOCK_SECONDS)
        crowd.look_after()


def judge_failures(ledger: Ledger) -> None:
    """A compiler that failed without refusing its source must be one that was killed."""
    totals = ledger.totals()
    killed = sum(count for event, count in totals.items() if event.startswith("kill -9: compiler"))
    if totals["builds: the compiler died"] > killed:
        ledger.count(f"{AMISS}compilers failed of which nobody killed one")


def judge_what_is_left(scene: Scene, ledger: Ledger) -> None:
    """`clean` leaves one entry for each key, with its notes; `clean --all` leaves nothing."""
    time.sleep(YOUNG_SECONDS)
    for place in scene.places:
        soak_faults.run_clean(place.toys[0].store, ledger)
        for path in _left(place.toys[0].store):
            ledger.count(f"{AMISS}left over after clean: {path}")
    for place in scene.places:
        soak_faults.run_clean(place.toys[0].store, ledger, everything=True)
    left = [path for cache_dir in scene.cache_dirs for path in cache_dir.glob("*/*")]
    left += [path for path in scene.tmp_dir.iterdir() if not path.name.startswith("npu_ce_jit-")]
    for memory in {place.shared_memory for place in scene.places}:
        files = list(memory.glob("npu_ce_jit-*/**/*"))
        left += [path for path in files if path.is_file() and path.suffix not in (".lock", ".owner", ".failure")]
    for path in left:
        ledger.count(f"{AMISS}left over after clean --all: {path}")


def _left(store: Store) -> list[Path]:
    useful = ("entry", "note", "rejected")
    return [item.path for item in inventory.items(store) if item.kind not in useful and not item.root.read_only]


def report(totals: Counter[str], seconds: float, is_mounted: bool) -> int:
    """Prints the counts and the verdict; returns the exit code."""
    lines = [f"{count:8}  {event}" for event, count in sorted(totals.items())]
    lines.append(f"the full disk was {'a small tmpfs' if is_mounted else 'a mock, for want of the right to mount one'}")
    amiss = [event for event in totals if event.startswith(AMISS)]
    missed = [event for event in MUST_HIT if not any(key.startswith(event) for key in totals)]
    lines += [f"never seen: {event}" for event in missed]
    failed = bool(amiss) or (bool(missed) and seconds >= SHORT_SECONDS)
    lines.append(f"{'FAILED' if failed else 'nothing amiss'}: {len(amiss)} kinds of fault, {len(missed)} never seen")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if failed else 0


def main() -> int:
    seconds, processes = (int(word) for word in [*sys.argv[1:], *["600", "32"][len(sys.argv) - 1 :]][:2])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        scene, ledger = set_up(directory), Ledger(directory, processes + 1)
        before = content(scene.prebuilt_dir)
        try:
            soak(scene, ledger, seconds, processes)
            judge_failures(ledger)
            judge_what_is_left(scene, ledger)
            if content(scene.prebuilt_dir) != before:
                ledger.count(f"{AMISS}something was written to what is prebuilt")
            code = report(ledger.totals(), seconds, scene.is_mounted)
            if code:
                sys.stdout.write(ledger.evidence_file.read_text("utf-8", "replace")[:20000])
        finally:
            if scene.is_mounted:
                with contextlib.suppress(OSError):
                    subprocess.run(["umount", "--lazy", scene.small_dir], check=False)
    return code


if __name__ == "__main__":
    sys.exit(main())
