# SPDX-License-Identifier: Apache-2.0
"""The processes that break a cache during a soak: one damages entries, one fills the disk, one cleans.

Damaged bytes are written to a new file: a change of a mapped file would end a process, which no cache can prevent.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from soak_ledger import AMISS, Ledger
from soak_scene import Scene
from toy_package import fork

from npu_ce_jit.cli import cache_commands
from npu_ce_jit.jit.cache.entry import MANIFEST, PREFIX
from npu_ce_jit.jit.cache.store import Store
from npu_ce_jit.jit.toolchain.flags import CPU_LIBRARY

SIZES = (0, 1, 64, 1000, 4096, 8192, -4096, -64, -1)  # a library is cut to this size or, if negative, by it
AWAY = "away-"  # prefix of names that are being put in place or removed
NOBODY = 65534
IS_ROOT = os.getuid() == 0  # only root can change a file's owner
PAUSE_SECONDS = 0.3
ENTRY_DELETED = "entry deleted"
PAGE = bytes(4096)


def start(task: Callable[[Scene, Ledger], None], scene: Scene, ledger: Ledger) -> int:
    """Runs the task again and again, in a process of its own, until the soak is over."""

    def run() -> None:
        random.seed()
        with ledger.witness(task.__name__):
            while not ledger.is_over:
                task(scene, ledger)
                time.sleep(random.random() * PAUSE_SECONDS)

    return fork(run)


def damage(scene: Scene, ledger: Ledger) -> None:
    """Damages one entry, or plants one as another user would.

    From time to time it also lets one source fail to compile, and makes one node's locks writable for others.
    """
    _toggle(scene.unwilling_file)
    with contextlib.suppress(FileNotFoundError):
        (scene.places[-1].shared_memory / f"npu_ce_jit-{os.getuid()}").chmod(random.choice((0o700, 0o777)))
    entries = [entry for cache_dir in scene.cache_dirs for entry in cache_dir.glob(f"*/{PREFIX}*")]
    if not entries:
        return
    entry_dir = random.choice(entries)
    with contextlib.suppress(OSError, ValueError, LookupError):  # removed or damaged before, or the small disk is full
        if random.random() < 0.1:
            name = ENTRY_DELETED
            shutil.rmtree(entry_dir)
        elif random.random() < 0.8:
            name = random.choice(list(_DAMAGES))
            _damage_copy(entry_dir, _DAMAGES[name])
        else:
            name = random.choice(list(_PLANTED))
            _plant(entry_dir, _PLANTED[name])
        ledger.count(f"damage: {name}")


def fill(scene: Scene, ledger: Ledger) -> None:
    """Leaves the small disk only a few pages and inodes, or none, for a while."""
    if not scene.is_mounted:
        _toggle(scene.full_file)
        return
    ballast_dir = scene.small_dir / "ballast"
    ballast_dir.mkdir(exist_ok=True)
    try:
        for number in range(random.randrange(100)):
            (ballast_dir / str(number)).write_bytes(PAGE if random.random() < 0.8 else b"")
    except OSError:
        ledger.count("disk full: to the last page")
    time.sleep(random.random() * PAUSE_SECONDS)
    shutil.rmtree(ballast_dir)


def _toggle(file: Path) -> None:
    if file.exists():
        file.unlink()
    else:
        file.touch()


def clean(scene: Scene, ledger: Ledger) -> None:
    """Runs `clean` with random options, as a user in another terminal would; sometimes it is killed."""
    time.sleep(1.0)
    options = random.choice(list(_CLEANINGS))
    store = random.choice(scene.places).toys[0].store
    cleaner = fork(lambda: run_clean(store, ledger, **_CLEANINGS[options]))
    if random.random() < 0.2:
        time.sleep(random.random() * 0.02)
        os.kill(cleaner, 9)
    status = os.waitpid(cleaner, 0)[1]
    ledger.count(f"clean: {options}" if status == 0 else "kill -9: of clean")


def run_clean(store: Store, ledger: Ledger, **options: object) -> None:
    defaults = {"everything": False, "rejected": False, "older_than_days": None, "dry_run": False}
    with ledger.witness("clean"), contextlib.redirect_stdout(io.StringIO()):
        code = cache_commands.clean(store, **(defaults | options))
    if code != 0:
        ledger.count(f"{AMISS}clean returned {code}")


_CLEANINGS: Mapping[str, Mapping[str, object]] = {
    "what serves nobody": {},
    "older than a second": {"older_than_days": 1 / 86400},
    "everything": {"everything": True},
    "dry run": {"everything": True, "dry_run": True},
}


def _damage_copy(entry_dir: Path, change: Callable[[Path], None]) -> None:
    """Replaces an entry by a damaged copy."""
    copy_dir, old_dir = (entry_dir.with_name(f"{AWAY}{os.urandom(6).hex()}") for _ in range(2))
    try:
        shutil.copytree(entry_dir, copy_dir, symlinks=True)
        change(copy_dir)
        entry_dir.rename(old_dir)
        copy_dir.rename(entry_dir.with_name(f"{PREFIX}{os.urandom(6).hex()}"))
    finally:
        shutil.rmtree(copy_dir, ignore_errors=True)
        shutil.rmtree(old_dir, ignore_errors=True)


def _cut(entry_dir: Path) -> None:
    library = entry_dir / CPU_LIBRARY
    size = random.choice(SIZES)
    os.truncate(library, size if size >= 0 else library.stat().st_size + size)


def _zero_page(entry_dir: Path) -> None:
    library = entry_dir / CPU_LIBRARY
    with library.open("r+b") as file:
        file.seek(random.randrange(library.stat().st_size // len(PAGE)) * len(PAGE))
        file.write(PAGE)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def _exchange_library(entry_dir: Path) -> None:
    shutil.copy(random.choice(_others(entry_dir)) / CPU_LIBRARY, entry_dir)


def _exchange_entry(entry_dir: Path) -> None:
    shutil.copytree(random.choice(_others(entry_dir)), entry_dir, dirs_exist_ok=True)


def _others(entry_dir: Path) -> list[Path]:
    """Entries of other keys."""
    found = [path for path in entry_dir.parent.parent.glob(f"*/{PREFIX}*") if path.parent != entry_dir.parent]
    if not found:
        raise FileNotFoundError("no other entry")
    return found


def _link(entry_dir: Path) -> None:
    library = entry_dir / CPU_LIBRARY
    library.rename(entry_dir / "elsewhere.so")
    library.symlink_to("elsewhere.so")


def _unlink(name: str) -> Callable[[Path], None]:
    return lambda entry_dir: (entry_dir / name).unlink()


_DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "library cut": _cut,
    "page zeroed": _zero_page,
    "bit of the library flipped": lambda entry_dir: _flip(entry_dir / CPU_LIBRARY),
    "bit of the manifest flipped": lambda entry_dir: _flip(entry_dir / MANIFEST),
    "manifest cut": lambda entry_dir: os.truncate(entry_dir / MANIFEST, random.choice((0, 1, 1000))),
    "library deleted": _unlink(CPU_LIBRARY),
    "manifest deleted": _unlink(MANIFEST),
    "library of another key": _exchange_library,
    "entry of another key": _exchange_entry,
    "library a symbolic link": _link,
}


def _plant(entry_dir: Path, expose: Callable[[Path], None]) -> None:
    """Plants an entry for a while. It matches its manifest and has this key, but contains another key's library.

    Its name sorts first, so that every process examines it.
    """
    planted_dir = entry_dir.with_name(f"{AWAY}{os.urandom(6).hex()}")
    visible_dir = entry_dir.with_name(f"{PREFIX}000{os.urandom(4).hex()}")
    try:
        shutil.copytree(entry_dir, planted_dir)
        _exchange_library(planted_dir)
        library = (planted_dir / CPU_LIBRARY).read_bytes()
        manifest = json.loads((planted_dir / MANIFEST).read_text("utf-8"))
        sums = {"bytes": len(library), "sha256": hashlib.sha256(library).hexdigest()}
        manifest["libraries"][CPU_LIBRARY] = sums
        (planted_dir / MANIFEST).write_text(json.dumps(manifest), "utf-8")
        expose(planted_dir)
        planted_dir.rename(visible_dir)
        time.sleep(PAUSE_SECONDS)
    finally:
        for path in (planted_dir, visible_dir):
            shutil.rmtree(path, ignore_errors=True)


_PLANTED: Mapping[str, Callable[[Path], None]] = {
    "planted where others can write the library": lambda entry_dir: (entry_dir / CPU_LIBRARY).chmod(0o666),
    "planted where others can write the entry": lambda entry_dir: entry_dir.chmod(0o777),
    **({"planted by another user": lambda entry_dir: os.chown(entry_dir / CPU_LIBRARY, NOBODY, -1)} if IS_ROOT else {}),
}
FAULTS = (
    *(f"damage: {name}" for name in (ENTRY_DELETED, *_DAMAGES, *_PLANTED)),
    *(f"clean: {name}" for name in _CLEANINGS),
)
