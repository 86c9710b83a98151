# SPDX-License-Identifier: Apache-2.0
"""The commands that look after the cache. Each prints what it did and returns the exit code."""

from __future__ import annotations

from pathlib import Path

from npu_ce_jit.console import age_of, print_table, size_of
from npu_ce_jit.jit import inventory
from npu_ce_jit.jit.archive import pack, unpack
from npu_ce_jit.jit.inventory import BROKEN, Item
from npu_ce_jit.jit.store import Store


def clean(store: Store, *, everything: bool, older_than_days: float | None, dry_run: bool) -> int:
    """Removes what serves nobody, and further copies; with an age also entries made before that; or everything.

    What a living builder works in stays. A process that has a library open keeps it: files go, mappings stay.
    """
    failed = False
    freed = count = 0
    for item in list(inventory.items(store)):
        if item.root.read_only or not _goes(item, everything, older_than_days):
            continue
        size = item.size
        if not dry_run:
            try:
                inventory.remove(item)
            except FileNotFoundError:
                continue  # another one cleans too
            except OSError as error:
                print(f"cannot remove {item.path}: {error}")
                failed = True
                continue
        print(f"{'would remove' if dry_run else 'removed'} {item.path} ({item.kind}, {size_of(size)})")
        freed, count = freed + size, count + 1
    print(f"{count} {'would go' if dry_run else 'removed'}, {size_of(freed)}")
    return 1 if failed else 0


def _goes(item: Item, everything: bool, older_than_days: float | None) -> bool:
    if item.kind in ("building", "untrusted"):
        return False
    if everything or item.kind in BROKEN or item.kind == "copy":
        return True
    return older_than_days is not None and item.age > older_than_days * 86400


def verify(store: Store) -> int:
    """Reads every byte of every entry; 1 where one is damaged or could have been written by others."""
    rows, bad = [], 0
    for item in inventory.items(store):
        if item.kind in ("entry", "copy", "damaged", "untrusted"):
            is_bad = item.kind in ("damaged", "untrusted")
            bad += is_bad
            rows.append([item.kind if is_bad else "ok", str(item.path), item.problem])
    if rows:
        print_table(("", "entry", "problem"), rows)
    print(
        f"{len(rows)} entries, {bad} bad" + ("; remove them with: python -m npu_ce_jit clean --broken" if bad else "")
    )
    return 1 if bad else 0


def pack_into(store: Store, file: Path) -> int:
    """Every good entry, in one file; in a directory the file is named by what the first of them needs."""
    artifacts = [item.artifact for item in inventory.items(store) if item.kind == "entry" and item.artifact is not None]
    if file.is_dir() and artifacts:
        file = file / f"npu_ce_jit-{artifacts[0].entry_dir.parent.name}.tar.gz"
    pack(artifacts, file)
    for artifact in artifacts:
        print(f"packed {artifact.entry_dir.parent.name}")
    print(f"{file}, {size_of(file.stat().st_size)}")
    return 0


def unpack_from(store: Store, file: Path) -> int:
    """Entries that are there already stay as they are."""
    for one in unpack(file, store):
        print(f"{'unpacked' if one.is_new else 'already there:'} {one.entry_dir}")
    return 0


def list_entries(store: Store) -> None:
    """All that the cache holds, a line each."""
    rows = [
        [item.kind, size_of(item.size), age_of(item.age), str(item.path), item.problem]
        for item in inventory.items(store)
        if item.kind != "note"
    ]
    if rows:
        print_table(("kind", "size", "age", "path", "problem"), rows)
