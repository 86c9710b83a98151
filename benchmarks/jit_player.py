# SPDX-License-Identifier: Apache-2.0
"""One process, or forks of one, that get a library from our JIT or from torch's and print what that took.

    python benchmarks/jit_player.py WHO FORKS SOURCE

`jit.py` starts these. Each says "ready" once torch is imported, waits for the end of its standard input, which many can
share, and prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

WAIT_SECONDS = 5.0  # for a lock whose owner was killed
_STARTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec"}


def our_package(_: Path) -> None:
    import npu_ce_jit  # noqa: F401
    from npu_ce_jit import bootstrap

    session = bootstrap.current()
    assert session is not None and session.backend == "cpp", session and session.cpu.problem


def our_jit(source: Path) -> None:
    from npu_ce_jit.jit.loader import obtain_open
    from npu_ce_jit.jit.sources import Sources
    from npu_ce_jit.jit.targets import cpu_target
    from npu_ce_jit.jit.toolchain.discovery import Toolchain
    from npu_ce_jit.settings import Settings

    settings = Settings.from_env(os.environ)
    toolchain = Toolchain(settings)
    target = cpu_target(settings, toolchain, Sources.of(source.parents[2]))
    assert obtain_open(target, settings, toolchain, may_build=True) is not None


def torch_load(source: Path) -> None:
    from torch.utils.cpp_extension import load

    load(source.stem, [str(source)], is_python_module=False)


def torch_module(source: Path) -> None:
    import torch
    from torch.utils.cpp_extension import load

    assert load(source.stem, [str(source)]).twice(torch.ones(1)).item() == 2


def our_lock(hold: Callable[[], None]) -> None:
    from npu_ce_jit.jit.build.lock import build_lock
    from npu_ce_jit.settings import Settings

    with build_lock(f"benchmark of process {os.getppid()}", Settings.from_env(os.environ), lambda: None):
        hold()


def torch_lock(hold: Callable[[], None]) -> None:
    from torch.utils.file_baton import FileBaton

    baton = FileBaton(f"{os.environ['TORCH_EXTENSIONS_DIR']}-{os.getppid()}.lock")
    while not baton.try_acquire():
        baton.wait()
    hold()


PLAYS = {play.__name__: play for play in (our_package, our_jit, torch_load, torch_module)}
LOCKS = {lock.__name__: lock for lock in (our_lock, torch_lock)}


def _play(who: str, source: Path) -> None:
    started: list[str] = []
    sys.addaudithook(lambda event, _: started.append(event) if event in _STARTS else None)
    sys.stdout.write("ready\n")  # in one piece, since forks share the pipe
    sys.stdout.flush()
    sys.stdin.read()
    start = time.monotonic()
    PLAYS[who](source)
    done = time.monotonic()  # of a clock that all processes share
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {
        "seconds": done - start,
        "done": done,
        "started": len(started),
        "compilers": used.ru_utime + used.ru_stime,
    }
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def _regain(who: str) -> None:
    """Prints the seconds from the kill -9 of a lock's owner until a waiting process has it; null after WAIT_SECONDS."""

    def fork_one(hold: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            LOCKS[who](hold)
            os._exit(0)
        return pid

    def hold_for_ever() -> None:
        os.write(held_by_first, b"x")
        time.sleep(3600)

    def say_when() -> None:
        os.write(held_by_second, json.dumps(time.monotonic()).encode())

    first_has_it, held_by_first = os.pipe()
    second_has_it, held_by_second = os.pipe()
    first = fork_one(hold_for_ever)
    os.read(first_has_it, 1)
    second = fork_one(say_when)
    time.sleep(1.0)
    os.kill(first, signal.SIGKILL)
    killed = time.monotonic()
    os.waitpid(first, 0)
    while os.waitpid(second, os.WNOHANG) == (0, 0):
        if time.monotonic() - killed > WAIT_SECONDS:
            os.kill(second, signal.SIGKILL)
            os.waitpid(second, 0)
            print("null")
            return
        time.sleep(0.01)
    print(json.loads(os.read(second_has_it, 100)) - killed)


def main() -> None:
    who, forks, source = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    import torch  # noqa: F401

    if who == our_jit.__name__:
        import npu_ce_jit  # noqa: F401  without a build, see NPU_CE_JIT_BUILD in jit_processes.py
    if who in LOCKS:
        _regain(who)
    elif forks == 1:
        _play(who, source)
    else:
        for _ in range(forks):
            if os.fork() == 0:
                _play(who, source)
                os._exit(0)
        for _ in range(forks):
            assert os.wait()[1] == 0, "a fork failed"


if __name__ == "__main__":
    main()
