# SPDX-License-Identifier: Apache-2.0
"""The cache key: a readable text of all that a target's libraries depend on, and a directory name made from it."""

import hashlib
import string
from collections.abc import Sequence
from typing import Final

from npu_ce_jit._version import __version__
from npu_ce_jit.jit.targets import Target

_DIGEST_CHARS = 12  # of a sha256: enough for one user's cache, short enough to read
_NAME_CHARS = frozenset(string.ascii_letters + string.digits + ".+_")


class CacheKey:
    """`text` is everything that changes the bytes of the libraries, a fact a line; `name` is their directory's.

    `digest` is a sha256 of the text, cut as short as one user's cache allows.
    """

    def __init__(self, text: str, name_parts: Sequence[str], *, names_sources: bool = True) -> None:
        self.text: Final = text
        self.digest: Final = _digest(text)
        parts = (*name_parts, self.digest)
        self.name: Final = "-".join("".join(char if char in _NAME_CHARS else "_" for char in part) for part in parts)
        self.names_sources: Final = names_sources

    def is_served_by(self, text: str) -> bool:
        """Whether an entry whose key has this text serves this key, which may leave the sources open."""
        if self.names_sources:
            return text == self.text
        return "".join(line for line in text.splitlines(True) if not line.startswith("source ")) == self.text


def cache_key(target: Target) -> CacheKey:
    """The key of a target, of its sources as they are now. Raises BuildError where one cannot be read."""
    lines = [f"target: {target.name}", *(f"{name}: {value}" for name, value in target.facts)]
    lines += [f"define: {define}" for define in target.sources.defines]
    lines += [f"source {name}: {digest}" for name, digest in target.sources.digests()]
    has_sources = bool(target.sources.names)
    return CacheKey("\n".join(lines) + "\n", (__version__, *target.name_parts), names_sources=has_sources)


def is_name_of(name: str, text: str) -> bool:
    """Whether a directory of this name is for the key of this text."""
    return name.rpartition("-")[2] == _digest(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGEST_CHARS]
