# SPDX-License-Identifier: Apache-2.0
"""Brings a verified library into this process."""

from __future__ import annotations

import ctypes

import torch

from npu_ce_jit.errors import LoadError
from npu_ce_jit.jit.store import Artifact


def load(artifact: Artifact, *, huge_pages: bool) -> None:
    """Loads the library, whose static initialisers register its kernels with torch's dispatcher.

    Raises LoadError with dlerror's text, which torch hides in `__cause__`.
    """
    path = str(artifact.library)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise LoadError(
            f"The dynamic linker refused {path}: {error.__cause__ or error}.",
            "It was set aside; import again to build it with this machine's compiler, or set CXX to another one.",
        ) from error
    if not huge_pages:  # on is the library's default
        ctypes.CDLL(path).npu_ce_jit_set_huge_pages(ctypes.c_int(0))  # the same handle again
