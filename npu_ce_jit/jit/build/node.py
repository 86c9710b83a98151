# SPDX-License-Identifier: Apache-2.0
"""A private directory that the processes of this node alone share; home may be on a disk that other nodes see too."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from npu_ce_jit.jit.cache.permissions import make_private_dir
from npu_ce_jit.jit.cache.roots import tmp_dir
from npu_ce_jit.settings import Settings

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


def node_file(settings: Settings, name: str, suffix: str) -> Path:
    """The file for `name`, any text. Raises OSError or UntrustedError where the directory cannot be made or trusted."""
    stem = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return _node_dir(settings) / f"{stem}{suffix}"


def _node_dir(settings: Settings) -> Path:
    bases = (_SHARED_MEMORY, tmp_dir(settings))
    for base in bases:
        if os.access(base, os.W_OK):
            private_dir = base / f"npu_ce_jit-{os.getuid()}"
            make_private_dir(private_dir)
            make_private_dir(private_dir / "builds")
            return private_dir / "builds"
    raise OSError(f"neither {bases[0]} nor {bases[1]} can be written")
