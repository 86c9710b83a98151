# SPDX-License-Identifier: Apache-2.0
"""Brings a verified library into this process."""

import ctypes
from collections.abc import Mapping

import torch

from npu_ce_jit.errors import LoadError
from npu_ce_jit.jit.store import Artifact


def load(artifact: Artifact, switches: Mapping[str, bool]) -> None:
    """Loads the library, whose static initialisers register its kernels with torch's dispatcher.

    Each switch is a function of the library that takes an int; only those that differ from its default are given.
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
    if switches:
        library = ctypes.CDLL(path)  # the same handle again
        for name, on in switches.items():
            library[name](ctypes.c_int(on))
