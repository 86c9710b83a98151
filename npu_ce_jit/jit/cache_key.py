# SPDX-License-Identifier: Apache-2.0
"""What a target's libraries were built for, as a text that one can read, and the directory name made of it."""

import hashlib
import re
from typing import NamedTuple

from npu_ce_jit._version import __version__
from npu_ce_jit.jit.targets import Target

_DIGEST_CHARS = 12  # of a sha256: enough for one user's cache, short enough to read


class CacheKey(NamedTuple):
    """`text` is everything that changes the bytes of the libraries, a fact a line; `name` is their directory."""

    text: str
    digest: str
    name: str


def cache_key(target: Target) -> CacheKey:
    """Of the sources as they are now. Raises BuildError where one cannot be read."""
    lines = [f"target: {target.name}", *(f"{name}: {value}" for name, value in target.facts)]
    lines += [f"define: {define}" for define in target.sources.defines]
    lines += [f"source {name}: {digest}" for name, digest in target.sources.digests()]
    text = "\n".join(lines) + "\n"
    digest = _digest(text)
    parts = (__version__, *target.name_parts, digest[:_DIGEST_CHARS])
    return CacheKey(text, digest, "-".join(re.sub(r"[^A-Za-z0-9.+_]", "_", part) for part in parts))


def is_name_of(name: str, text: str) -> bool:
    """Whether a directory of this name is for the key of this text."""
    return name.rpartition("-")[2] == _digest(text)[:_DIGEST_CHARS]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
