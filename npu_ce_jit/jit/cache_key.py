# SPDX-License-Identifier: Apache-2.0
"""What a library was built for, as a text that one can read, and the directory name made of it."""

import hashlib
import re
from typing import NamedTuple

from npu_ce_jit._version import __version__
from npu_ce_jit.jit import flags
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain import Toolchain
from npu_ce_jit.settings import Settings

_DIGEST_CHARS = 12  # of a sha256: enough for one user's cache, short enough to read


class CacheKey(NamedTuple):
    """`text` is everything that changes the bytes of the library, a fact a line; `name` is its directory."""

    text: str
    digest: str
    name: str


def cache_key(settings: Settings, toolchain: Toolchain, sources: Sources) -> CacheKey:
    """Raises ToolchainError where the CPU's instructions cannot be told.

    The default compiler's version is left out: a machine that only runs may have none, and asking would start a
    process at each import. The manifest has it. Paths and times are left out because they change no byte.
    """
    cpu_isa = toolchain.cpu_isa.require()
    facts = {
        "npu_ce_jit": __version__,
        "torch": toolchain.torch_version.require(),
        "torch git": toolchain.torch_git.require(),
        "torch_npu": toolchain.torch_npu_version.value or "none",
        "CANN": toolchain.cann_version.value or "none",
        "NPU architecture": toolchain.npu_architecture.value or "none",
        "system": toolchain.system.require(),
        "machine": toolchain.machine.require(),
        "CPU instructions": cpu_isa,
        "compile flags": " ".join(flags.COMPILE),
        "kernel flags": " ".join(flags.OF_ISA[cpu_isa]),
        "link flags": " ".join(flags.LINK + flags.LIBRARIES),
        "CXX": settings.cxx or "default",
    }
    lines = [f"{name}: {value}" for name, value in facts.items()]
    lines += [f"source {name}: {digest}" for name, digest in sources.files]
    text = "\n".join(lines) + "\n"
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    parts = [
        facts["npu_ce_jit"],
        f"torch{facts['torch']}",
        *([f"cann{facts['CANN']}"] if toolchain.cann_version.value else []),
        facts["machine"],
        cpu_isa,
        digest[:_DIGEST_CHARS],
    ]
    return CacheKey(text, digest, "-".join(re.sub(r"[^A-Za-z0-9.+_]", "_", part) for part in parts))
