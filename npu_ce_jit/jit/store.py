# SPDX-License-Identifier: Apache-2.0
"""The cache: `<root>/v1/<key name>/e-<random>/`, each entry whole or absent, and never changed once published."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.cache_key import CacheKey
from npu_ce_jit.jit.trust import UntrustedError, make_private_dir, read_trusted, require_trusted_dir, write_private
from npu_ce_jit.settings import Settings

_logger = logging.getLogger("npu_ce_jit")

_LAYOUT = "v1"
_MANIFEST = "manifest.json"
_VERDICT = "verdict"


class Artifact(NamedTuple):
    """One entry whose libraries were verified: `entry_dir` holds them beside their manifest, build.ninja and build.log.

    `library` is the one to load; it finds the others beside itself.
    """

    entry_dir: Path
    library: Path
    manifest: Mapping[str, Any]


class Root(NamedTuple):
    """A directory that may hold the cache, and what asked for it."""

    path: Path
    origin: str

    @property
    def layout_dir(self) -> Path:
        """Without symbolic links: the root may be one, but must not lead elsewhere after its target was checked."""
        return self.path.resolve() / _LAYOUT


class Store(NamedTuple):
    """All roots are searched, in order; a build goes to the first that can be written."""

    roots: tuple[Root, ...]

    @classmethod
    def of(cls, settings: Settings) -> "Store":
        """The user's choice first; a private directory in TMPDIR is there for a machine without a writable home."""
        if settings.cache_dir is not None:
            first = [Root(settings.cache_dir, "NPU_CE_JIT_CACHE_DIR")]
        elif settings.xdg_cache_home is not None:
            first = [Root(settings.xdg_cache_home / "npu_ce_jit", "XDG_CACHE_HOME")]
        elif settings.home is not None:
            first = [Root(settings.home / ".cache" / "npu_ce_jit", "HOME")]
        else:
            first = []
        user = str(os.getuid()) if hasattr(os, "getuid") else "user"  # Windows finds nothing and builds nothing
        return cls((*first, Root(settings.tmp_dir / f"npu_ce_jit-{user}", "TMPDIR")))

    def find(self, key: CacheKey) -> Artifact | None:
        """A verified entry for this key, or None. Raises nothing.

        What others could have written is passed over. What is damaged is set aside, so that it is told once.
        """
        for root in self.roots:
            for entry_dir in _dirs(root, key, "e-"):
                try:
                    return _verified(entry_dir, key)
                except UntrustedError as error:
                    _logger.warning("not used: %s", error)
                except (OSError, ValueError) as error:
                    _logger.warning("set aside %s: %s", entry_dir, error)
                    set_aside(entry_dir)
        return None

    @contextlib.contextmanager
    def staging_dir(self, key: CacheKey) -> Iterator[Path]:
        """A private directory on the cache's own file system, gone at the end. Raises BuildError with each refusal."""
        refusals: list[str] = []
        for root in self.roots:
            try:
                staging_dir = _make_staging_dir(root, key)
            except (UntrustedError, OSError) as error:
                refusals.append(f"{root.origin}: {error}")
                continue
            if refusals:
                _logger.info("building in %s, because of %s", root.path, "; ".join(refusals))
            try:
                yield staging_dir
            finally:
                shutil.rmtree(staging_dir, ignore_errors=True)
            return
        raise BuildError(
            f"No directory to build in ({'; '.join(refusals)}).",
            "Set NPU_CE_JIT_CACHE_DIR to a directory that you alone can write.",
        )

    def examine(self) -> Iterator[tuple[Root, str | None]]:
        """Each root with the reason why nothing can be built in it, or None."""
        for root in self.roots:
            try:
                tempfile.TemporaryFile(dir=_make_layout_dir(root)).close()
            except (UntrustedError, OSError) as error:
                yield root, str(error)
            else:
                yield root, None

    def publish(
        self, staging_dir: Path, libraries: Sequence[str], others: Sequence[str], facts: Mapping[str, Any]
    ) -> Artifact:
        """Moves these files of `staging_dir` into a new entry, the library to load first. Raises OSError.

        One rename makes the entry visible, to a name that nobody else uses: there is nothing to overwrite or to lose.
        """
        sums = {name: _sum((staging_dir / name).read_bytes()) for name in libraries}
        manifest = {**facts, "libraries": sums}
        entry_dir = staging_dir / "entry"
        entry_dir.mkdir(mode=0o700)
        for name in (*libraries, *others):
            (staging_dir / name).rename(entry_dir / name)
            _sync(entry_dir / name)
        write_private(entry_dir / _MANIFEST, json.dumps(manifest, indent=2) + "\n")
        _sync(entry_dir)
        published_dir = staging_dir.parent / f"e-{os.urandom(6).hex()}"
        entry_dir.rename(published_dir)
        _sync(published_dir.parent)
        return Artifact(published_dir, published_dir / libraries[0], manifest)

    def knows(self, artifact: Artifact, fact: str) -> bool:
        """Whether `remember` was called with this before, by this user or root. Raises nothing."""
        with contextlib.suppress(OSError, UntrustedError):
            return read_trusted(_note_file(artifact, fact)) == fact.encode()
        return False

    def remember(self, artifact: Artifact, fact: str) -> None:
        """Keeps a line of text beside an entry, which itself never changes. Where that fails, it is not remembered."""
        note_file = _note_file(artifact, fact)
        private_file = note_file.with_name(f".{note_file.name}-{os.urandom(6).hex()}")
        try:
            write_private(private_file, fact)
            private_file.rename(note_file)
        except OSError as error:
            _logger.debug("not remembered: %s", error)

    def rejected(self, key: CacheKey) -> Iterator[tuple[Mapping[str, Any], str]]:
        """The manifests of this key's entries that were rejected, each with the verdict on it. Raises nothing."""
        for root in self.roots:
            for entry_dir in _dirs(root, key, "rejected-"):
                with contextlib.suppress(OSError, UntrustedError, ValueError):
                    yield _manifest(entry_dir, key), read_trusted(entry_dir / _VERDICT).decode("utf-8", "replace")


def reject(artifact: Artifact, verdict: str) -> None:
    """Hides an entry that is whole and of no use, so that the next build does not make the same again. Never raises."""
    with contextlib.suppress(OSError):  # another process may have written its own
        write_private(artifact.entry_dir / _VERDICT, verdict)
    set_aside(artifact.entry_dir, "rejected")


def set_aside(entry_dir: Path, kind: str = "bad") -> None:
    """Hides an entry that is damaged or does not load here, so that the next build takes its place. Never raises."""
    with contextlib.suppress(OSError):
        entry_dir.rename(entry_dir.with_name(f"{kind}-{os.urandom(6).hex()}"))


def _dirs(root: Root, key: CacheKey, prefix: str) -> list[Path]:
    key_dir = root.layout_dir / key.name
    try:
        for path in (root.layout_dir.parent, root.layout_dir, key_dir):
            require_trusted_dir(path)
        return sorted(key_dir / name for name in os.listdir(key_dir) if name.startswith(prefix))
    except UntrustedError as error:
        _logger.warning("not used: %s", error)
    except OSError as error:
        _logger.debug("nothing in %s: %s", root.path, error)
    return []


def _verified(entry_dir: Path, key: CacheKey) -> Artifact:
    """Raises UntrustedError, OSError, or ValueError that says what differs.

    The bytes are checked before anything maps them: a truncated library ends the process by a signal.
    """
    manifest = _manifest(entry_dir, key)
    sums = manifest.get("libraries")
    if not isinstance(sums, dict) or not sums:
        raise ValueError("its manifest names no library")
    for name, expected in sums.items():
        got = _sum(read_trusted(entry_dir / Path(name).name))
        if got != expected:
            raise ValueError(f"{name} has {got}, its manifest says {expected}")
    return Artifact(entry_dir, entry_dir / Path(next(iter(sums))).name, manifest)


def _manifest(entry_dir: Path, key: CacheKey) -> dict[str, Any]:
    require_trusted_dir(entry_dir)
    manifest = json.loads(read_trusted(entry_dir / _MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("key") != key.text:
        raise ValueError("its manifest is for another key")
    return manifest


def _sum(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _note_file(artifact: Artifact, fact: str) -> Path:
    name = hashlib.sha256(fact.encode()).hexdigest()[:12]
    return artifact.entry_dir.with_name(f"note-{artifact.entry_dir.name}-{name}")


def _make_layout_dir(root: Root) -> Path:
    root.path.parent.mkdir(parents=True, exist_ok=True)
    layout_dir = root.layout_dir
    make_private_dir(layout_dir.parent)
    make_private_dir(layout_dir)
    return layout_dir


def _make_staging_dir(root: Root, key: CacheKey) -> Path:
    key_dir = _make_layout_dir(root) / key.name
    make_private_dir(key_dir)
    return Path(tempfile.mkdtemp(prefix=f".b-{socket.gethostname()}-{os.getpid()}-", dir=key_dir))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
