# SPDX-License-Identifier: Apache-2.0
"""Starts processes of jit_player.py at once, with caches of their own, and gathers what they say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

_PLAYER = Path(__file__).with_name("jit_player.py")


class Run(NamedTuple):
    """The figures of one process or of a crowd."""

    seconds: float  # from the start of all until the last is done
    own: float  # seconds of the slowest, by its own clock
    builds: int
    started: int  # processes, by the one that started most
    compilers: float  # seconds of processor time, in all


class Processes:
    """Starts players with caches below `directory`, and with one compiler, which counts the libraries that it links."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._script = directory / "cxx"
        real = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))))
        count = f'case " $* " in *" -shared "*) echo >> "{directory}/builds";; esac'
        self._script.write_text(f'#!/bin/sh\n{count}\nexec {real} "$@"\n', "utf-8")
        self._script.chmod(0o755)

    def run(self, who: str, source: Path, cache: str, *, crowd: int = 1, forks: int = 1) -> Run:
        """`crowd` processes with `forks` forks each, all in the cache of this name."""
        builds_file = self._directory / "builds"
        builds_file.write_text("", "utf-8")
        reading, writing = os.pipe()
        players = [self._start(who, source, cache, forks, reading) for _ in range(crowd)]
        os.close(reading)
        for player in players:
            assert player.stdout is not None
            for _ in range(forks):
                assert player.stdout.readline() == "ready\n", "a player ended early"
        start = time.monotonic()
        os.close(writing)
        rows = [json.loads(line) for player in players for line in player.communicate()[0].splitlines()]
        assert len(rows) == crowd * forks and not any(player.returncode for player in players), "a player failed"
        return Run(
            seconds=max(row["done"] for row in rows) - start,
            own=max(row["seconds"] for row in rows),
            builds=len(builds_file.read_text("utf-8").splitlines()),
            started=max(row["started"] for row in rows),
            compilers=sum(row["compilers"] for row in rows),
        )

    def regain(self, lock: str) -> float | None:
        """Seconds from the kill -9 of the lock's owner to its next owner; None after WAIT_SECONDS."""
        player = self._start(lock, Path(), "lock", 1, subprocess.DEVNULL)
        seconds: float | None = json.loads(player.communicate()[0])
        return seconds

    def _start(self, who: str, source: Path, cache: str, forks: int, stdin: int) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NPU_CE_JIT_")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment |= {
            "CXX": str(self._script),
            "NPU_CE_JIT_BUILD": "eager" if who == "our_package" else "never",
            "NPU_CE_JIT_LOG": "error",
            "NPU_CE_JIT_CACHE_DIR": str(self._directory / f"{who}-{cache}"),
            "TORCH_EXTENSIONS_DIR": str(self._directory / f"{who}-{cache}"),
            "PYTHONPYCACHEPREFIX": str(self._directory / "bytecode"),  # torch's is written there by the first run too
        }
        return subprocess.Popen(
            [sys.executable, _PLAYER, who, str(forks), source],
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
        )
