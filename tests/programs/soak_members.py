# SPDX-License-Identifier: Apache-2.0
"""What the processes of a soak do with the cache, and how each checks the result.

Steps of `jit/` are wrapped, so that a killer sees a process's current step; a slowed fsync gives it time.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import json
import logging
import os
import random
import signal
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from soak_ledger import AMISS, Ledger
from soak_scene import UNWILLING, Place, Scene, refusal
from toy_package import Toy, exit_code, fork

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit import loader as loader_module
from npu_ce_jit.jit.build import compile as build_module
from npu_ce_jit.jit.build import lock as lock_module
from npu_ce_jit.jit.build import node as node_module
from npu_ce_jit.jit.cache.entry import MANIFEST
from npu_ce_jit.jit.cache.store import Store
from npu_ce_jit.jit.loader import find_or_build, load_or_build

USES = 4  # uses by one process, which then ends, as a user's would
SLOW_SECONDS = 0.1
MOST_GROWTH_KIB = 4096  # of a process that stays, after the first third of its uses

SILENT = "said nothing"  # the package's message for a compiler without output, as on a full disk
_FULL = (errno.ENOSPC, errno.EDQUOT)
_STEPS: tuple[tuple[Any, str, str], ...] = (
    (Store, "find", "looking"),
    (lock_module, "_acquire", "waiting"),
    (build_module._Build, "in_some_root", "preparing"),
    (build_module, "_run_ninja", "compiling"),
    (build_module, "publish", "publishing"),
    (build_module, "record_failure", "recording"),
    (loader_module, "open_library", "loading"),
)
# Beginnings of the package's log messages, and the events that they are counted as.
_MESSAGES = {
    "set aside": "healed: set aside",
    "not used": "healed: passed over",
    "removing what a builder left": "healed: removed what a dead builder left",
    "waited": "went on without the lock: its owner does not end",
    "building without a lock": "went on without the lock: it cannot be used",
    "The dynamic linker refused": "went on without a library: this node's linker refuses it",
}


class Member:
    """One process of a soak: its number and its place."""

    def __init__(self, number: int, place: Place, scene: Scene, ledger: Ledger) -> None:
        self._number, self._place, self._scene, self._ledger = number, place, scene, ledger

    def start(self, task: Callable[[Member], None]) -> int:
        """Runs `task` in a process of its own; returns its id."""

        def run() -> None:
            with self._ledger.witness("a member"):
                self._move_in()
                task(self)

        return fork(run)

    def visit(self) -> None:
        """Uses a few libraries and ends."""
        for _ in range(USES):
            self._use(random.choice(self._place.toys))

    def stay(self) -> None:
        """Finds or builds libraries until the end, and has forked children use them. It must not grow."""
        sizes: list[tuple[int, int]] = []
        while not self._ledger.is_over:
            one = random.choice(self._place.toys)
            with self._judged(one):
                find_or_build(one.target, one.settings, one.toolchain, may_build=True)
            if exit_code(fork(lambda one=one: self._use(one))) != 0:
                self._ledger.count(f"{AMISS}a child of one that stays ended early")
            sizes.append((len(os.listdir("/proc/self/fd")), _private_kib()))
        files, kib = (now - then for now, then in zip(sizes[-1], sizes[len(sizes) // 3], strict=True))
        self._ledger.count(f"one that stayed: {len(sizes)} uses, {files:+} open files, {kib:+} KiB")
        if files > 0 or kib > MOST_GROWTH_KIB:
            self._ledger.count(f"{AMISS}one that stayed grew")

    def _use(self, one: Toy) -> None:
        with self._ledger.witness("a use"), self._judged(one):
            artifact = load_or_build(one.target, one.settings, one.toolchain, may_build=True)
            assert artifact is not None
            value = ctypes.CDLL(str(artifact.library)).toy()  # the same handle each time, even if the file was removed
            is_right = value == self._place.toys.index(one) and artifact.manifest["key"] == one.key.text
            self._ledger.count("used: right" if is_right else f"{AMISS}a wrong library")

    @contextmanager
    def _judged(self, one: Toy) -> Iterator[None]:
        """Accepts a failed build if the source does not compile, or the compiler was killed."""
        number = self._place.toys.index(one)
        try:
            yield
        except BuildError as error:
            if refusal(number) in str(error) and number == UNWILLING:
                self._ledger.count("reported: it does not compile")
            elif _is_compiler_s_death(error):
                self._ledger.count("reported: the compiler died")
            else:
                raise

    def _move_in(self) -> None:
        """Makes this process one of its place, and its steps visible. Only this forked process is changed."""
        random.seed()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # SIGINT is for the process that started the soak
        faulthandler.enable(self._ledger.evidence)
        faulthandler.register(signal.SIGUSR1, self._ledger.evidence)
        node_module._SHARED_MEMORY = self._place.shared_memory
        socket.gethostname = lambda: self._place.node
        os.fsync = self._slow_sync
        torch.ops.load_library = self._linker(torch.ops.load_library)
        for owner, name, phase in _STEPS:
            setattr(owner, name, self._seen(getattr(owner, name), phase))
        build_module._failure_of = self._counting_full_disks(build_module._failure_of)
        build_module._with_kept_log = self._counting_failures(build_module._with_kept_log)
        logger = logging.getLogger("npu_ce_jit")
        logger.handlers, logger.propagate = [_Listener(self._ledger)], False
        logger.setLevel(logging.INFO)

    def _seen(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """Wraps a step so that its phase is visible."""
        ledger, number = self._ledger, self._number

        def step(*arguments: Any, **options: Any) -> Any:
            before = ledger.enter(number, phase)
            if phase in ("recording", "loading"):
                time.sleep(random.random() * SLOW_SECONDS / 2)
            try:
                result = function(*arguments, **options)
            except OSError as error:
                if error.errno in _FULL and not hasattr(error, "is_counted"):
                    error.is_counted = True
                    ledger.count(f"disk full: while {phase}")
                raise
            finally:
                ledger.enter(number, before)
            if phase == "compiling":
                ledger.count("builds: compiled" if result else "builds: not compiled")
            elif phase == "publishing":
                ledger.count("builds: published")
            return result

        return step

    def _counting_full_disks(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def failure_of(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except OSError as full:
                full.is_counted = True
                self._ledger.count(f"disk full: in the compiler{', without a word' if SILENT in str(full) else ''}")
                raise

        return failure_of

    def _counting_failures(self, function: Callable[..., BuildError]) -> Callable[..., BuildError]:
        def with_kept_log(error: BuildError, directory: Path) -> BuildError:
            died = _is_compiler_s_death(error)
            self._ledger.count("builds: the compiler died" if died else "builds: the source was refused")
            return function(error, directory)

        return with_kept_log

    def _slow_sync(self, descriptor: int) -> None:
        # There is no power failure here, so nothing needs to reach a disk.
        time.sleep(random.random() ** 2 * SLOW_SECONDS)
        if (
            self._scene.full_file.exists()
            and self._scene.small_dir in Path(f"/proc/self/fd/{descriptor}").readlink().parents
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _linker(self, load_library: Callable[[str], None]) -> Callable[[str], None]:
        """Wraps the loading of libraries: it refuses some of another node's, as older system libraries would."""

        def load(path: str) -> None:
            if self._place.node != "one" and zlib.crc32(os.path.dirname(path).encode()) % 4 == 0:
                manifest = json.loads(Path(path).with_name(MANIFEST).read_text("utf-8"))
                if manifest["host"] != self._place.node:
                    raise OSError("version `GLIBCXX_9.9' not found")
            load_library(path)

        return load


class _Listener(logging.Handler):
    """Counts the package's messages. A full disk is the only accepted reason to build in another root."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        event = next((event for start, event in _MESSAGES.items() if text.startswith(start)), None)
        if text.startswith("building in "):
            is_full = any(os.strerror(number) in text for number in _FULL) or SILENT in text
            event = "disk full: went on in the next root" if is_full else f"{AMISS}{text}"
        elif event is None and record.levelno >= logging.WARNING:
            event = f"{AMISS}{text}"
        if event is not None:
            self._ledger.count(event)


def _is_compiler_s_death(error: BuildError) -> bool:
    return SILENT in error.fact or (error.fact.endswith("did not compile.") and "does not want to be" not in str(error))


def _private_kib() -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))
