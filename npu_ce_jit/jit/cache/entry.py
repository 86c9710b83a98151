# SPDX-License-Identifier: Apache-2.0
"""One entry of the cache: libraries beside their manifest, whole or absent, and never changed once published."""

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from npu_ce_jit.jit.cache.permissions import (
    UntrustedError,
    make_private_dir,
    read_trusted,
    require_trusted_dir,
    write_private,
)

_logger = logging.getLogger("npu_ce_jit")

MANIFEST = "manifest.json"
PREFIX = "e-"
BAD_PREFIX = "bad-"
REJECTED_PREFIX = "rejected-"
NOTE_PREFIX = "note-"

_VERDICT = "verdict"

# The names of sanitizers' runtimes in a library's strings: opened late, such a runtime ends the process.
_SANITIZERS = re.compile(rb"\0(lib(?:clang_rt\.)?(?:asan|hwasan|tsan|msan)[\w.+-]*\.so[\w.]*)(?=\0)")
_REFUSAL = "does not load on"

_refused: set[Path] = set()  # by this process; needed where the note about it cannot be written


class Artifact(NamedTuple):
    """An entry whose libraries were verified: `entry_dir` holds them beside their manifest, build.ninja and build.log.

    `library` is the one to load; it finds the others beside itself.
    """

    entry_dir: Path
    library: Path
    manifest: Mapping[str, Any]
    notes_dir: Path | None = None  # for an entry in a read-only root; else notes are beside the entry


def verified(entry_dir: Path, notes_dir: Path | None = None) -> Artifact:
    """The entry, verified. Raises UntrustedError, OSError, or ValueError that says what differs.

    The bytes are checked before anything maps them: a truncated library ends the process by a signal.
    """
    manifest = _manifest(entry_dir)
    sums = manifest.get("libraries")
    if not isinstance(sums, dict) or not sums:
        raise ValueError("its manifest names no library")
    for name, expected in sums.items():
        got = _sum(read_trusted(entry_dir / Path(name).name))
        if got != expected:
            raise ValueError(f"{name} has {got}, its manifest says {expected}")
    return Artifact(entry_dir, entry_dir / Path(next(iter(sums))).name, manifest, notes_dir)


def publish(staging_dir: Path, libraries: Sequence[str], others: Sequence[str], facts: Mapping[str, Any]) -> Artifact:
    """Moves these files of `staging_dir` into a new entry beside it, the library to load first. Raises OSError."""
    contents = {name: (staging_dir / name).read_bytes() for name in libraries}
    first = sorted({name.decode() for content in contents.values() for name in _SANITIZERS.findall(content)})
    sums = {name: _sum(content) for name, content in contents.items()}
    manifest = {**facts, **({"first": first} if first else {}), "libraries": sums}
    entry_dir = staging_dir / "entry"
    entry_dir.mkdir(mode=0o700)
    for name in (*libraries, *others):
        (staging_dir / name).rename(entry_dir / name)
        _sync(entry_dir / name)
    write_private(entry_dir / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    published_dir = make_visible(entry_dir, staging_dir.parent)
    return Artifact(published_dir, published_dir / libraries[0], manifest)


def make_visible(entry_dir: Path, key_dir: Path) -> Path:
    """Publishes an entry by one rename to a new random name, which overwrites nothing. Raises OSError."""
    _sync(entry_dir)
    published_dir = key_dir / f"{PREFIX}{os.urandom(6).hex()}"
    entry_dir.rename(published_dir)
    _sync(key_dir)
    return published_dir


def set_aside(entry_dir: Path) -> None:
    """Hides an entry that is damaged, so that the next build takes its place. Never raises."""
    with contextlib.suppress(OSError):
        entry_dir.rename(entry_dir.with_name(f"{BAD_PREFIX}{os.urandom(6).hex()}"))


def reject(artifact: Artifact, verdict: str) -> None:
    """Hides an entry that failed its self-check, so that the next build does not make the same again. Never raises."""
    if artifact.notes_dir is not None:  # in a read-only root
        refuse_here(artifact)
        return
    with contextlib.suppress(OSError):  # another process may have written its own
        write_private(artifact.entry_dir / _VERDICT, verdict)
    try:
        artifact.entry_dir.rename(artifact.entry_dir.with_name(f"{REJECTED_PREFIX}{os.urandom(6).hex()}"))
    except OSError:
        refuse_here(artifact)


def rejection(rejected_dir: Path) -> tuple[Mapping[str, Any], str]:
    """The manifest of an entry that was rejected, and the verdict on it. Raises UntrustedError, OSError, ValueError."""
    manifest = _manifest(rejected_dir)
    return manifest, read_trusted(rejected_dir / _VERDICT).decode("utf-8", "replace")


def refuse_here(artifact: Artifact) -> None:
    """Has this machine skip an entry: others that share the cache may have newer system libraries, and can use it."""
    _refused.add(artifact.entry_dir)
    remember(artifact, _refusal())


def is_refusal(note_file: Path) -> bool:
    """Whether a note was written by `refuse_here`, on any machine. Raises nothing."""
    with contextlib.suppress(OSError, UntrustedError):
        return read_trusted(note_file).startswith(_REFUSAL.encode())
    return False


def is_refused_here(artifact: Artifact) -> bool:
    return artifact.entry_dir in _refused or knows(artifact, _refusal())


def knows(artifact: Artifact, fact: str) -> bool:
    """Whether `remember` was called with this before, by this user or root. Raises nothing."""
    with contextlib.suppress(OSError, UntrustedError):
        return read_trusted(_note_file(artifact, fact)) == fact.encode()
    return False


def remember(artifact: Artifact, fact: str) -> None:
    """Keeps a line of text in a note about an entry, which itself never changes. A failure is only logged."""
    note_file = _note_file(artifact, fact)
    private_file = note_file.with_name(f".{note_file.name}")  # always this one, so that killed processes leave one
    try:
        make_private_dir(note_file.parent)
        private_file.unlink(missing_ok=True)
        write_private(private_file, fact)
        private_file.rename(note_file)
    except (OSError, UntrustedError) as error:
        _logger.debug("not remembered: %s", error)


def noted_dir(path: Path) -> Path | None:
    """The entry that the file `path` is a note about, finished or not; None for any other file."""
    name = path.name.removeprefix(".")
    if not name.startswith(NOTE_PREFIX):
        return None
    return path.with_name(name.removeprefix(NOTE_PREFIX).rpartition("-")[0])


def _manifest(entry_dir: Path) -> dict[str, Any]:
    require_trusted_dir(entry_dir)
    manifest = json.loads(read_trusted(entry_dir / MANIFEST))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("key"), str):
        raise ValueError("its manifest names no key")
    return manifest


def _refusal() -> str:
    return f"{_REFUSAL} {socket.gethostname()}"


def _note_file(artifact: Artifact, fact: str) -> Path:
    name = hashlib.sha256(fact.encode()).hexdigest()[:12]
    return (artifact.notes_dir or artifact.entry_dir.parent) / f"{NOTE_PREFIX}{artifact.entry_dir.name}-{name}"


def _sum(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
