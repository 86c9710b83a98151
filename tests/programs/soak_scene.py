# SPDX-License-Identifier: Apache-2.0
"""The scene of a soak: libraries that return the number of their key, and the places of caches."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from toy_package import EXPORT, NO_KERNELS, Toy, compiler_script, toy

from npu_ce_jit.jit.build.compile import build
from npu_ce_jit.jit.cache.roots import Root
from npu_ce_jit.jit.cache.store import Store

NUMBERS = range(6)  # of the libraries; each returns its own
UNWILLING = 5  # its source does not compile while `Scene.unwilling_file` exists
PREBUILT, PREBUILT_DAMAGED = 0, 1
LOCK_SECONDS = 4.0

_SMALL_SIZE = "size=320k,nr_inodes=160"  # a build takes about 20 pages of 4 KiB and 20 inodes
_CLONE_NEWNS = 0x20000


class Place(NamedTuple):
    """A node that uses a cache, and its toys."""

    name: str
    node: str
    shared_memory: Path
    toys: tuple[Toy, ...]


class Scene(NamedTuple):
    """The places, and the files that control faults."""

    places: tuple[Place, ...]
    small_dir: Path
    is_mounted: bool  # whether `small_dir` is a small file system; if not, `full_file` simulates a full disk
    full_file: Path
    unwilling_file: Path
    prebuilt_dir: Path
    tmp_dir: Path

    @property
    def cache_dirs(self) -> tuple[Path, ...]:
        """All directories in which a process builds."""
        roots = (root for place in self.places for root in place.toys[0].store.build_roots)
        return tuple(sorted({root.layout_dir for root in roots}))


def refusal(number: int) -> str:
    return f"error: toy {number} does not want to be compiled"


def set_up(directory: Path) -> Scene:
    small_dir, tmp_dir, prebuilt_dir = directory / "small", directory / "tmp", directory / "prebuilt"
    full_file, unwilling_file = directory / "full", directory / "unwilling"
    for path in (small_dir, tmp_dir, directory / "memory"):
        path.mkdir(mode=0o700)
    is_mounted = _mount(small_dir)
    script = compiler_script(
        directory,
        f'case "$*" in */toy{UNWILLING}/*) [ -e {unwilling_file} ] &&'
        f' {{ echo "toy.cpp:1:1: {refusal(UNWILLING)}"; exit 1; }};; esac\n'
        f'case "$PWD" in {small_dir}/*) [ -e {full_file} ] && {{ echo "No space left on device"; exit 1; }};; esac',
    )

    def place(name: str, cache: str, node: str = "one", memory: str = "memory", **variables: str) -> Place:
        variables |= {"NPU_CE_JIT_CACHE_DIR": str(directory / cache), "TMPDIR": str(tmp_dir), "CXX": script}
        variables |= {"NPU_CE_JIT_LOCK_TIMEOUT": str(LOCK_SECONDS)}
        toys = tuple(_toy(directory / f"toy{number}", number, variables) for number in NUMBERS)
        return Place(name, node, directory / memory, toys)

    on_disk = place("disk", "disk")
    _build_ahead(on_disk, prebuilt_dir)
    return Scene(
        places=(
            on_disk,
            place("full disk", "small/cache"),
            place("prebuilt", "disk", NPU_CE_JIT_PREBUILT_DIR=str(prebuilt_dir)),
            place("other node", "disk", node="other", memory="small"),
        ),
        small_dir=small_dir,
        is_mounted=is_mounted,
        full_file=full_file,
        unwilling_file=unwilling_file,
        prebuilt_dir=prebuilt_dir,
        tmp_dir=tmp_dir,
    )


def content(directory: Path) -> Mapping[Path, tuple[int, int, bytes]]:
    """Everything below a directory: path -> mode, time and bytes."""
    found = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        found[path] = (status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found


def _toy(directory: Path, number: int, variables: Mapping[str, str]) -> Toy:
    body = f"{NO_KERNELS}{EXPORT} int toy() {{ return {number}; }}\n"
    return toy(directory, body, **variables)


def _build_ahead(place: Place, prebuilt_dir: Path) -> None:
    """Builds a valid entry, and one whose library is truncated."""
    store = Store((Root(prebuilt_dir, "--into"),))
    for number in (PREBUILT, PREBUILT_DAMAGED):
        one = place.toys[number]
        artifact = build(one.target, one.settings, one.toolchain, one.key, store)
        if number == PREBUILT_DAMAGED:
            os.truncate(artifact.library, 4096)


def _mount(directory: Path) -> bool:
    """Mounts a small file system that only this process and its children see; returns whether that worked."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        return False
    commands = (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", _SMALL_SIZE, "tmpfs", directory])
    return all(subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0 for command in commands)
