# SPDX-License-Identifier: Apache-2.0
"""Finds or builds a target's libraries, and loads them into this process. The steps are the same for every target."""

import contextlib
import ctypes
import logging
import os
import socket
from collections.abc import Iterator, Mapping

import torch

from npu_ce_jit.errors import LoadError, ToolchainError
from npu_ce_jit.jit.cache.entry import Artifact, refuse_here
from npu_ce_jit.jit.cache.key import CacheKey, cache_key
from npu_ce_jit.jit.cache.store import Store
from npu_ce_jit.jit.targets import Target
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings

_logger = logging.getLogger("npu_ce_jit")


def find_or_build(target: Target, settings: Settings, toolchain: Toolchain, *, may_build: bool) -> Artifact | None:
    """The target's entry; None where it is not built and may not be. Raises ToolchainError or BuildError."""
    key, store = cache_key(target), Store.of(settings)
    return store.find(key) or (_build(target, settings, toolchain, key, store) if may_build else None)


def load_or_build(target: Target, settings: Settings, toolchain: Toolchain, *, may_build: bool) -> Artifact | None:
    """`find_or_build`, then opens the library. Also raises LoadError, where the linker refuses a library just built.

    A library from the cache that the linker refuses may come from a machine with newer system libraries, which can go
    on using it: it is skipped here. A library that is gone was removed meanwhile: a cache may be cleaned at any time.
    """
    key, store = cache_key(target), Store.of(settings)
    while (found := store.find(key)) is not None:
        try:
            open_library(found, target.switches)
        except LoadError as error:
            if found.library.exists():
                _logger.warning("%s", error)
                refuse_here(found)
        else:
            return found
    if not may_build:
        _require_prebuilt_to_serve(target, settings, key, store)
        return None
    built = _build(target, settings, toolchain, key, store)  # looks again under the lock
    try:
        open_library(built, target.switches)
    except LoadError:
        if built.library.exists() and built.manifest["host"] == socket.gethostname():
            raise
        return load_or_build(target, settings, toolchain, may_build=may_build)
    return built


def _build(target: Target, settings: Settings, toolchain: Toolchain, key: CacheKey, store: Store) -> Artifact:
    from npu_ce_jit.jit.build import compile  # compilers and locks: not on the warm path

    return compile.build(target, settings, toolchain, key, store)


def _require_prebuilt_to_serve(target: Target, settings: Settings, key: CacheKey, store: Store) -> None:
    """Raises ToolchainError where only prebuilt libraries may be used: their user does not want the reference."""
    if settings.build == "never" and settings.prebuilt_dirs:
        from npu_ce_jit.jit.build.cache_miss import reason

        why = "; ".join(store.refusals) or reason(key, store)
        raise ToolchainError(
            f"What NPU_CE_JIT_PREBUILT_DIR names has no {target.title} for this process ({why}), "
            "and NPU_CE_JIT_BUILD=never.",
            "Build it where the sources, torch and the CPU are the same: python -m npu_ce_jit build --into DIR",
        )


def open_library(artifact: Artifact, switches: Mapping[str, int]) -> None:
    """Opens the library, which is never closed: a call in another thread may be in it at any time.

    `switches` are functions of the library with their int argument, given where that is not the library's default.
    Raises LoadError with dlerror's text, which torch hides in `__cause__`; ToolchainError where opening it would end
    the process, as a sanitizer's runtime does unless it is the first library.
    """
    path = str(artifact.library)
    absent = [name for name in artifact.manifest.get("first", ()) if not _is_open(name)]
    if absent:
        raise ToolchainError(
            f"{path} was compiled with a sanitizer, and {', '.join(absent)} has to be the first library of a process.",
            f"Take -fsanitize out of CXX, or start the program with LD_PRELOAD=$($CXX -print-file-name={absent[0]}).",
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise LoadError(
            f"The dynamic linker refused {path}: {error.__cause__ or error}.",
            "It is not used again on this machine; set CXX to a compiler whose libraries this machine has.",
        ) from error
    library = _opened(artifact)
    try:
        for function in ("npu_ce_jit_register", "npu_ce_jit_kernels", *switches):
            library[function]
    except AttributeError as error:
        raise LoadError(
            f"A function is missing from it that libraries of this version have: {error}.",
            "Compare the sources that it was built from with those that are installed.",
        ) from error
    for name, value in switches.items():
        library[name](ctypes.c_int(value))


def use(artifact: Artifact) -> None:
    """Has torch call the kernels of a library that is open, in every thread from its next call on."""
    registered = _registered().get(artifact.library.name)
    if registered is None:
        _registered()[artifact.library.name] = library = _opened(artifact)
        library.npu_ce_jit_register()
    else:
        registered.npu_ce_jit_use(_kernels(artifact))


@contextlib.contextmanager
def on_trial(artifact: Artifact) -> Iterator[None]:
    """Has torch call the kernels of a library that is open, in this thread alone and only in this block.

    Another library of the same device must be in use.
    """
    registered = _registered()[artifact.library.name]
    try:
        registered.npu_ce_jit_try(_kernels(artifact))
        yield
    finally:
        registered.npu_ce_jit_try(None)


def _is_open(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False
    return True


def _registered() -> dict[str, ctypes.CDLL]:
    """The library that torch's dispatcher calls, by file name, one for each device. It calls the kernels in use.

    Kept in torch's namespace of the operators, since a registration outlives the modules that a notebook reloads.
    """
    libraries: dict[str, ctypes.CDLL] = vars(torch.ops.npu_ce_jit).setdefault("_registered_libraries", {})
    return libraries


def _opened(artifact: Artifact) -> ctypes.CDLL:
    return ctypes.CDLL(str(artifact.library))  # an open library gives the same handle


def _kernels(artifact: Artifact) -> ctypes.c_void_p:
    library = _opened(artifact)
    library.npu_ce_jit_kernels.restype = ctypes.c_void_p
    return ctypes.c_void_p(library.npu_ce_jit_kernels())
