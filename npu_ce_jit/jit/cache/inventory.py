# SPDX-License-Identifier: Apache-2.0
"""Everything in the cache, whatever its key, and which of it is of no use."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from npu_ce_jit.jit.cache import entry
from npu_ce_jit.jit.cache.entry import Artifact
from npu_ce_jit.jit.cache.permissions import UntrustedError, require_trusted_dir
from npu_ce_jit.jit.cache.roots import Root
from npu_ce_jit.jit.cache.staging import PREFIX as STAGING_PREFIX
from npu_ce_jit.jit.cache.staging import dead_staging_dirs
from npu_ce_jit.jit.cache.store import Store

Kind = Literal["entry", "copy", "damaged", "untrusted", "set aside", "rejected", "leftover", "building", "note"]

BROKEN: frozenset[Kind] = frozenset(("damaged", "set aside", "leftover"))


class Item(NamedTuple):
    """One file or directory below a key's directory, or a directory that others could have written.

    A copy is a further entry for a key; two builds without a common lock leave one. A leftover is the
    directory of a builder that was killed, or a note about an entry that was removed. `problem` says what is wrong,
    `artifact` is there for an entry and a copy.
    """

    root: Root
    path: Path
    kind: Kind
    problem: str = ""
    artifact: Artifact | None = None

    @property
    def key_name(self) -> str:
        return self.path.parent.name

    @property
    def size(self) -> int:
        """In bytes. Files that are deleted meanwhile count as 0."""
        files = [str(self.path)]
        for directory, dirs, names in os.walk(self.path):
            files += [os.path.join(directory, name) for name in (*dirs, *names)]
        total = 0
        for file in files:
            with contextlib.suppress(OSError):
                total += os.lstat(file).st_size
        return total

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        with contextlib.suppress(OSError):
            return time.time() - self.path.lstat().st_mtime
        return 0.0


def items(store: Store) -> Iterator[Item]:
    """Everything in every root. Raises nothing; what others could have written is never opened."""
    for root in store.roots:
        dead = set(dead_staging_dirs(root.layout_dir))
        for key_dir in _directories(root):
            problem = _problem(key_dir)
            if problem:
                yield Item(root, key_dir, "untrusted", problem)
                continue
            seen = False
            for path in sorted(key_dir.iterdir()):
                item = _item(root, path, is_dead=path in dead)
                if item.kind == "entry" and seen:
                    item = item._replace(kind="copy")
                seen = seen or item.kind == "entry"
                yield item


def remove(item: Item) -> None:
    """Removes the item. An entry is renamed first, so that no process finds half of it. Raises OSError."""
    path = item.path
    if item.kind in ("entry", "copy", "damaged"):
        hidden = path.with_name(f"{entry.BAD_PREFIX}{os.urandom(6).hex()}")
        path.rename(hidden)
        path = hidden
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _directories(root: Root) -> list[Path]:
    """The keys' directories; instead the one above, if others could have written there. None in another user's home."""
    if root.anothers_home is not None:
        return []
    for path in (root.layout_dir.parent, root.layout_dir):
        if _problem(path):
            return [path]
    with contextlib.suppress(OSError):
        return [path for path in sorted(root.layout_dir.iterdir()) if path.is_dir() and not path.is_symlink()]
    return []


def _problem(directory: Path) -> str:
    try:
        require_trusted_dir(directory)
    except UntrustedError as error:
        return str(error)
    except OSError:
        pass
    return ""


def _item(root: Root, path: Path, *, is_dead: bool) -> Item:
    if path.name.startswith(STAGING_PREFIX):
        return Item(root, path, "leftover", "its builder was killed") if is_dead else Item(root, path, "building")
    if path.name.startswith(entry.BAD_PREFIX):
        return Item(root, path, "set aside", "it was damaged")
    if path.name.startswith(entry.REJECTED_PREFIX):
        return Item(root, path, "rejected", "it failed its self-check; `clean --rejected` has its flags tried again")
    noted_dir = entry.noted_dir(path)
    if noted_dir is not None and not noted_dir.exists():
        return Item(root, path, "leftover", "its entry is gone")
    if not path.name.startswith(entry.PREFIX):
        return Item(root, path, "note")
    try:
        return Item(root, path, "entry", artifact=entry.verified(path))
    except UntrustedError as error:
        return Item(root, path, "untrusted", str(error))
    except (OSError, ValueError) as error:
        return Item(root, path, "damaged", str(error))
