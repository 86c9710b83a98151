# SPDX-License-Identifier: Apache-2.0
"""The cache: `<root>/v1/<key name>/e-<random>/` in one or several roots. Only `entry` knows what is in an entry."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from npu_ce_jit.jit.cache import entry
from npu_ce_jit.jit.cache.entry import Artifact
from npu_ce_jit.jit.cache.key import CacheKey
from npu_ce_jit.jit.cache.permissions import UntrustedError, make_private_dir, require_trusted_dir
from npu_ce_jit.jit.cache.roots import Root, roots_of
from npu_ce_jit.settings import Settings

_logger = logging.getLogger("npu_ce_jit")

_reported: set[str] = set()  # a build looks several times, and warns once


class Store:
    """The roots of the cache: all are searched, in order; a build goes to the first that can be written."""

    def __init__(self, roots: tuple[Root, ...]) -> None:
        self.roots: Final = roots
        self.refusals: Final[list[str]] = []  # what `find` could not use, and why

    @classmethod
    def of(cls, settings: Settings) -> "Store":
        return cls(roots_of(settings))

    @property
    def build_roots(self) -> tuple[Root, ...]:
        """The roots that may be built in."""
        return tuple(root for root in self.roots if not root.read_only)

    def find(self, key: CacheKey) -> Artifact | None:
        """A verified entry for this key, or None. Raises nothing.

        Entries that others could have written are skipped. Damaged ones are renamed, so that each is reported once.
        """
        for root in self.roots:
            for entry_dir in self._dirs(root, key, entry.PREFIX):
                try:
                    artifact = entry.verified(entry_dir, self._notes_dir(root, key))
                    if not key.is_served_by(artifact.manifest["key"]):
                        raise ValueError("its manifest is for another key")
                except (ValueError, FileNotFoundError, NotADirectoryError) as error:
                    if not root.read_only and entry_dir.exists():  # else another process has set it aside
                        _logger.warning("set aside %s: %s", entry_dir, error)
                        entry.set_aside(entry_dir)
                    elif root.read_only:
                        self._refuse(f"{entry_dir}: {error}")
                except (UntrustedError, OSError) as error:  # this says nothing about the entry's content
                    self._refuse(str(error))
                else:
                    if not entry.is_refused_here(artifact):
                        return artifact
        return None

    def _notes_dir(self, root: Root, key: CacheKey) -> Path | None:
        return self.build_roots[0].layout_dir / key.name if root.read_only else None

    def rejected(self, key: CacheKey) -> Iterator[tuple[Mapping[str, Any], str]]:
        """The manifests of this key's entries that were rejected, each with the verdict on it. Raises nothing."""
        for root in self.roots:
            for rejected_dir in self._dirs(root, key, entry.REJECTED_PREFIX):
                with contextlib.suppress(OSError, UntrustedError, ValueError):
                    manifest, verdict = entry.rejection(rejected_dir)
                    if key.is_served_by(manifest["key"]):
                        yield manifest, verdict

    def examine(self) -> Iterator[tuple[Root, UntrustedError | OSError | None]]:
        """Each root that may be built in, with the reason why nothing can be, or None."""
        for root in self.build_roots:
            try:
                tempfile.TemporaryFile(dir=root.make_layout_dir()).close()
            except (UntrustedError, OSError) as error:
                yield root, error
            else:
                yield root, None

    def _dirs(self, root: Root, key: CacheKey, prefix: str) -> list[Path]:
        found: list[Path] = []
        try:
            root.require_ours()
            for path in (root.layout_dir.parent, root.layout_dir):
                require_trusted_dir(path)
            for key_dir in _key_dirs(root, key):
                require_trusted_dir(key_dir)
                found += sorted(key_dir / name for name in os.listdir(key_dir) if name.startswith(prefix))
        except UntrustedError as error:
            self._refuse(str(error))
        except OSError as error:
            if root.read_only and isinstance(error, PermissionError):
                self._refuse(str(error))
            _logger.debug("nothing in %s: %s", root.path, error)
        return found

    def _refuse(self, why: str) -> None:
        self.refusals.append(why)
        _logger.log(logging.DEBUG if why in _reported else logging.WARNING, "not used: %s", why)
        _reported.add(why)


def _key_dirs(root: Root, key: CacheKey) -> list[Path]:
    """The key's directory. For a key without sources, all in a prebuilt cache whose names differ by the digest."""
    if key.names_sources or not root.read_only:
        return [root.layout_dir / key.name]
    stem = key.name.removesuffix(key.digest)
    return sorted(root.layout_dir / name for name in os.listdir(root.layout_dir) if name.startswith(stem))


def make_key_dir(root: Root, key: CacheKey) -> Path:
    """Makes the directory of the key's entries. Raises UntrustedError, or OSError where the root cannot be built in."""
    key_dir = root.make_layout_dir() / key.name
    make_private_dir(key_dir)
    return key_dir
