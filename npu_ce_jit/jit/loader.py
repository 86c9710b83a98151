# SPDX-License-Identifier: Apache-2.0
"""A target's libraries, from the cache or from the compiler, and into this process. The same steps for every target."""

import ctypes
import logging
import socket
from collections.abc import Mapping

import torch

from npu_ce_jit.errors import LoadError
from npu_ce_jit.jit.cache_key import cache_key
from npu_ce_jit.jit.entry import Artifact, refuse_here
from npu_ce_jit.jit.store import Store
from npu_ce_jit.jit.targets import Target
from npu_ce_jit.jit.toolchain import Toolchain
from npu_ce_jit.settings import Settings

_logger = logging.getLogger("npu_ce_jit")


def obtain(target: Target, settings: Settings, toolchain: Toolchain, *, may_build: bool) -> Artifact | None:
    """None where nothing was built and nothing may be. Raises ToolchainError or BuildError."""
    key, store = cache_key(target), Store.of(settings)
    artifact = store.find(key)
    if artifact is not None or not may_build:
        return artifact
    from npu_ce_jit.jit.build import build  # compilers and locks: not on the warm path

    return build(target, settings, toolchain, key, store)


def obtain_loaded(
    target: Target, settings: Settings, toolchain: Toolchain, switches: Mapping[str, bool], *, may_build: bool
) -> Artifact | None:
    """`obtain`, and the library loaded. Raises LoadError as well, where the linker refuses a library just built.

    One that it refuses from the cache may come from a machine with newer system libraries, which can go on using it.
    One that is gone was removed since it was found or built: a cache may be cleaned at any time.
    """
    while (found := obtain(target, settings, toolchain, may_build=False)) is not None:
        try:
            load(found, switches)
        except LoadError as error:
            if found.library.exists():
                _logger.warning("%s", error)
                refuse_here(found)
        else:
            return found
    built = obtain(target, settings, toolchain, may_build=may_build)
    if built is None:
        return None
    try:
        load(built, switches)
    except LoadError:
        if built.library.exists() and built.manifest["host"] == socket.gethostname():
            raise
        return obtain_loaded(target, settings, toolchain, switches, may_build=may_build)
    return built


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
            "It is not used again on this machine; set CXX to a compiler whose libraries this machine has.",
        ) from error
    if switches:
        library = ctypes.CDLL(path)  # the same handle again
        for name, on in switches.items():
            library[name](ctypes.c_int(on))
