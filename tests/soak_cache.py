# SPDX-License-Identifier: Apache-2.0
"""Many processes use one cache while somebody breaks it: python tests/soak_cache.py [seconds] [processes].

Each process finds or builds a toy library, loads it and calls it. Meanwhile processes are killed (kill -9), entries are
truncated, deleted, opened to others, their bits are flipped, the cache is cleaned, and the compiler meets a full disk.
At the end: no process may hang, die by a signal that nobody sent, or get a wrong result, and nothing may be left over
after `clean`. Damage is done to an entry that was moved away for a second, as a disk would have it: a file that
changes while it is mapped ends a process, and no cache can help that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from toy_package import Toy, compiler_script, toy

from npu_ce_jit import cache_commands
from npu_ce_jit.errors import BuildError, LoadError
from npu_ce_jit.jit.cache_key import cache_key
from npu_ce_jit.jit.loader import obtain_loaded
from npu_ce_jit.jit.targets import cpu_target

HANG_SECONDS = 60.0
KEYS = 4
FINE, TOLD, WRONG = 0, 4, 5
EXPECTED = ("fine", "told why not", "killed by us")
AWAY = "away-"
# One compile in eight meets a full disk.
FULL_DISK = 'case "$*" in *-shared*) if [ $(($(date +%N | sed s/^0*//) % 8)) = 0 ]; then'
FULL_DISK += ' echo "fatal error: No space left on device"; exit 1; fi;; esac'


def users(directory: Path) -> list[Toy]:
    """Several keys, each a library of its own."""
    one = toy(directory, CXX=compiler_script(directory, FULL_DISK), NPU_CE_JIT_LOG="error")
    made = []
    for number in range(KEYS):
        target = cpu_target(one.settings, one.toolchain, one.target.sources)
        target = target._replace(facts=(*target.facts, ("number", str(number))))
        made.append(one._replace(target=target, key=cache_key(target)))
    return made


def use(one: Toy) -> int:
    try:
        artifact = obtain_loaded(one.target, one.settings, one.toolchain, may_build=True)
    except (BuildError, LoadError):
        return TOLD
    assert artifact is not None
    try:
        return FINE if ctypes.CDLL(str(artifact.library)).toy() == 42 else WRONG
    except OSError:  # removed since: its process has it, and only we ask for the file again
        return FINE


def start(one: Toy) -> int:
    pid = os.fork()
    if pid == 0:
        code = WRONG
        try:
            code = use(one)
        finally:
            os._exit(code)
    return pid


def truncate(library: Path) -> None:
    os.truncate(library, random.choice((0, 64, 1024, 4096, library.stat().st_size // 2, library.stat().st_size - 1)))


def flip(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    library.write_bytes(content)


def open_to_others(library: Path) -> None:
    library.chmod(0o777)


DAMAGES: tuple[Callable[[Path], None], ...] = (truncate, flip, open_to_others, Path.unlink)


def damage(root: Path) -> None:
    entries = list(root.glob("v1/*/e-*"))
    if not entries:
        return
    entry_dir = random.choice(entries)
    away = entry_dir.with_name(f"{AWAY}{os.urandom(4).hex()}")
    try:
        entry_dir.rename(away)
        time.sleep(1.0)
        random.choice(DAMAGES)(away / "libnpu_ce_jit_cpu.so")
        away.rename(entry_dir)
    except OSError:
        shutil.rmtree(away, ignore_errors=True)


def damage_for_ever(root: Path) -> int:
    pid = os.fork()
    if pid == 0:
        random.seed()
        while True:
            damage(root)
            time.sleep(random.random() / 2)
    return pid


class Crowd:
    """The processes that use the cache, and what became of each."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._running: dict[int, float] = {}  # since when
        self._killed: set[int] = set()

    def __len__(self) -> int:
        return len(self._running)

    def add(self, pid: int) -> None:
        self._running[pid] = time.monotonic()

    def kill_one(self) -> None:
        if self._running:
            self._kill(random.choice(list(self._running)))

    def kill_hung(self) -> None:
        for pid, since in self._running.items():
            if time.monotonic() - since > HANG_SECONDS and pid not in self._killed:
                self.outcomes["hung"] += 1
                self._kill(pid)

    def reap(self) -> None:
        for pid in list(self._running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del self._running[pid]
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGKILL and pid in self._killed:
                self.outcomes["killed by us"] += 1
            elif code < 0:
                self.outcomes[f"died by signal {-code}"] += 1
            else:
                self.outcomes[{FINE: "fine", TOLD: "told why not"}.get(code, "wrong")] += 1

    def _kill(self, pid: int) -> None:
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)


def clean(one: Toy, *, everything: bool = False) -> None:
    with open(os.devnull, "w") as nobody, contextlib.redirect_stdout(nobody):
        cache_commands.clean(one.store, everything=everything, older_than_days=None, dry_run=False)


def left_over(one: Toy) -> int:
    """What `clean` leaves of what is of no use. Another user's is not ours to judge: it is closed to others first."""
    root = one.store.roots[0].path
    for path in root.glob("v1/*/*"):
        for part in (path, *path.rglob("*")):
            part.chmod(0o700)
        if path.name.startswith(AWAY):
            shutil.rmtree(path)
    time.sleep(6)  # a builder's directory is young for five seconds
    clean(one)
    kept = ("e-", "note-", "failed-")
    return sum(not path.name.startswith(kept) for each in one.store.build_roots for path in each.path.glob("v1/*/*"))


def soak(directory: Path, seconds: float, processes: int) -> Counter[str]:
    made = users(directory)
    crowd = Crowd()
    vandal = damage_for_ever(made[0].store.roots[0].path)
    end = time.monotonic() + seconds
    while (is_on := time.monotonic() < end) or len(crowd):
        while is_on and len(crowd) < processes:
            crowd.add(start(random.choice(made)))
        if is_on and random.random() < 0.1:
            crowd.kill_one()
        if is_on and random.random() < 0.01:
            clean(made[0], everything=random.random() < 0.3)
        crowd.kill_hung()
        crowd.reap()
        time.sleep(0.02)
    os.kill(vandal, signal.SIGKILL)
    os.waitpid(vandal, 0)
    crowd.outcomes["left over"] = left_over(made[0])
    return crowd.outcomes


def main() -> int:
    seconds, processes = (int(word) for word in [*sys.argv[1:], "600", "32"][:2])
    with tempfile.TemporaryDirectory() as name:
        outcomes = soak(Path(name), seconds, processes)
    amiss = {what: count for what, count in outcomes.items() if count and what not in EXPECTED}
    sys.stdout.write(f"{dict(outcomes)}\n{f'amiss: {amiss}' if amiss else 'nothing amiss'}\n")
    return 1 if amiss else 0


if __name__ == "__main__":
    sys.exit(main())
