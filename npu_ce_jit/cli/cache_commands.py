# SPDX-License-Identifier: Apache-2.0
"""The commands that manage the cache. Each prints what it did and returns the exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from npu_ce_jit.console import print_table, size_of
from npu_ce_jit.errors import BuildError, NpuCeJitError
from npu_ce_jit.jit.build.compile import build as build_target
from npu_ce_jit.jit.cache import inventory
from npu_ce_jit.jit.cache.archive import pack, unpack
from npu_ce_jit.jit.cache.entry import Artifact, is_refusal, noted_dir
from npu_ce_jit.jit.cache.inventory import BROKEN, Item
from npu_ce_jit.jit.cache.key import cache_key
from npu_ce_jit.jit.cache.roots import Root
from npu_ce_jit.jit.cache.store import Store
from npu_ce_jit.jit.targets import Target, cpu_target, npu_target
from npu_ce_jit.jit.toolchain.compiler_output import BUILD_LOG
from npu_ce_jit.npu import require_supported_chip
from npu_ce_jit.session import State


def build(session: State, into: Path | None, soc: str | None, *, verbose: bool) -> int:
    """Builds the CPU library, and the NPU's if its software is installed or `soc` names a chip; 1 where one fails."""
    if soc is not None:
        require_supported_chip(soc, "Name a chip as `npu-smi info` or torch_npu does, for instance Ascend910B2.")
    settings, toolchain = session.settings, session.toolchain
    store = Store.of(settings) if into is None else Store((Root(into.absolute(), "--into"),))
    is_new = into is not None and not into.exists()
    failed = False
    for title, target_of in _targets(session, soc is not None).items():
        try:
            target = target_of()
            key = cache_key(target)
            artifact = store.find(key) or build_target(target, settings, toolchain, key, store)
        except NpuCeJitError as error:
            print(f"{title}: {error}")
            failed = True
        else:
            print(f"{title}: {artifact.entry_dir}")
            if into is not None:
                _let_all_read(artifact, whole=is_new)
            if verbose:
                print((artifact.entry_dir / BUILD_LOG).read_text("utf-8", "replace"))
    return 1 if failed else 0


def _let_all_read(artifact: Artifact, *, whole: bool) -> None:
    """Lets every user read the entry, since `--into` makes a cache to share. `whole`: the root too, as it is new."""
    key_dir = artifact.entry_dir.parent
    dirs = (*((key_dir.parents[1],) if whole else ()), key_dir.parent, key_dir, artifact.entry_dir)
    for path in (*dirs, *artifact.entry_dir.iterdir()):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


def _targets(session: State, for_npu: bool) -> dict[str, Callable[[], Target]]:
    settings, toolchain, sources = session.settings, session.toolchain, session.sources
    if sources is None:
        raise session.cpu.problem or BuildError("There are no sources to build from.", "Install npu_ce_jit again.")
    targets = {"CPU kernels": lambda: cpu_target(settings, toolchain, sources)}
    if for_npu or toolchain.has_npu_software:
        targets["NPU kernels"] = lambda: npu_target(settings, toolchain, sources)
    return targets


def clean(store: Store, *, everything: bool, rejected: bool, older_than_days: float | None, dry_run: bool) -> int:
    """Removes what is broken, and further copies of entries; with an age also what is older; or everything.

    With `rejected` also rejected entries and notes of refused libraries, so that these are tried again.

    What a running build works in stays. A process that has a library open keeps its mapping when the file is removed.
    """
    failed = False
    freed = count = 0
    items = [item for item in inventory.items(store) if not item.root.read_only]
    going = {item.path for item in items if _goes(item, everything, rejected, older_than_days)}
    for item in items:
        if item.path not in going and noted_dir(item.path) not in going:  # a note goes with its entry
            continue
        size = item.size
        if not dry_run:
            try:
                inventory.remove(item)
            except FileNotFoundError:
                continue  # another process cleans too
            except OSError as error:
                print(f"cannot remove {item.path}: {error}")
                failed = True
                continue
        print(f"{'would remove' if dry_run else 'removed'} {item.path} ({item.kind}, {size_of(size)})")
        freed, count = freed + size, count + 1
    print(f"{count} {'would go' if dry_run else 'removed'}, {size_of(freed)}")
    return 1 if failed else 0


def _goes(item: Item, everything: bool, rejected: bool, older_than_days: float | None) -> bool:
    if item.kind in ("building", "untrusted"):
        return False
    if everything or item.kind in BROKEN or item.kind == "copy":
        return True
    if rejected and (item.kind == "rejected" or (item.kind == "note" and is_refusal(item.path))):
        return True
    return older_than_days is not None and item.age > older_than_days * 86400


def verify(store: Store, *, may_colour: bool) -> int:
    """Reads every byte of every entry; 1 where one is damaged or could have been written by others."""
    found = [item for item in inventory.items(store) if item.kind in ("entry", "copy", "damaged", "untrusted")]
    bad = {item.kind for item in found} & {"damaged", "untrusted"}
    rows = [(item.kind if item.kind in bad else "ok", str(item.path), item.problem) for item in found]
    if rows:
        print_table(("", "entry", "problem"), rows, may_colour=may_colour)
    print(f"{len(rows)} entries, {sum(item.kind in bad for item in found)} bad")
    if "damaged" in bad:
        print("remove what is damaged with: python -m npu_ce_jit clean --broken")
    return 1 if bad else 0


def pack_into(session: State, file: Path) -> int:
    """Packs the entries that this installation would use; in a directory, the file is named by its last entry's key."""
    store, artifacts = Store.of(session.settings), []
    for title, target_of in _targets(session, False).items():
        artifact = store.find(cache_key(target_of()))
        print(f"{title}: {artifact.entry_dir if artifact else 'not built'}")
        artifacts += [artifact] if artifact else []
    if file.is_dir() and artifacts:
        file = file / f"npu_ce_jit-{artifacts[-1].entry_dir.parent.name}.tar.gz"
    pack(artifacts, file)
    print(f"packed into {file}, {size_of(file.stat().st_size)}")
    return 0


def unpack_from(store: Store, file: Path) -> int:
    """Puts the entries of an archive into the cache; those that are there already stay as they are."""
    for one in unpack(file, store):
        print(f"{'unpacked' if one.is_new else 'already there:'} {one.entry_dir}")
    return 0
