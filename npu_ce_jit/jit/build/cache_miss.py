# SPDX-License-Identifier: Apache-2.0
"""The reason for a build: how its key differs from those in the cache."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from npu_ce_jit.jit.cache import entry
from npu_ce_jit.jit.cache.key import CacheKey
from npu_ce_jit.jit.cache.permissions import UntrustedError, read_trusted
from npu_ce_jit.jit.cache.store import Store

_MOST_CHARS = 40  # longer values are not shown: flags and digests, which tell a person nothing
_MOST_SOURCES = 3

# The reason, by the prefix of a directory's name under the same key.
_INSTEAD = (
    (entry.BAD_PREFIX, "what the cache held was damaged"),
    (entry.REJECTED_PREFIX, "what was built before failed its self-check"),
    (entry.PREFIX, "what the cache holds cannot be used here"),
)


def reason(key: CacheKey, store: Store) -> str:
    """The reason in one phrase, for messages alone. Raises nothing."""
    names = [path.name for root in store.roots for path in _dirs(root.layout_dir / key.name)]
    for prefix, why in _INSTEAD:
        if any(name.startswith(prefix) for name in names):
            return why
    differences = [_differences(text, key.text) for text in _texts_of_same_target(key, store)]
    nearest = min(differences, key=len, default=[])
    return f"since the last build {'; '.join(nearest)}" if nearest else "nothing of it was built here before"


def _dirs(directory: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in directory.iterdir() if path.is_dir()]
    return []


def _texts_of_same_target(key: CacheKey, store: Store) -> Iterator[str]:
    target = key.text.partition("\n")[0]
    for root in store.roots:
        for key_dir in _dirs(root.layout_dir):
            for entry_dir in _dirs(key_dir):
                with contextlib.suppress(OSError, UntrustedError, ValueError, LookupError, TypeError):
                    text = str(json.loads(read_trusted(entry_dir / entry.MANIFEST))["key"])
                    if text.partition("\n")[0] == target:
                        yield text


def _differences(before: str, after: str) -> list[str]:
    """The changes between two keys' texts, a phrase each; those of sources come last."""
    old, new = _facts(before), _facts(after)
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    sources = [name.removeprefix("source ") for name in changed if name.startswith("source ")]
    facts = [_change(name, old.get(name), new.get(name)) for name in changed if not name.startswith("source ")]
    if len(sources) > _MOST_SOURCES:
        sources = [*sources[:_MOST_SOURCES], f"{len(sources) - _MOST_SOURCES} more sources"]
    return facts + [f"{name} changed" for name in sources]


def _facts(text: str) -> dict[str, str]:
    lines = (line.partition(": ") for line in text.splitlines())
    return {name: value for name, _, value in lines}


def _change(name: str, old: str | None, new: str | None) -> str:
    if old is None or new is None or max(len(old), len(new)) > _MOST_CHARS:
        return f"{name} changed"
    return f"{name} changed from {old} to {new}"
