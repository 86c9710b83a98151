# SPDX-License-Identifier: Apache-2.0
"""A target's libraries, from the cache or from the compiler. The same steps for every target."""

import logging
from collections.abc import Mapping

from npu_ce_jit.errors import LoadError
from npu_ce_jit.jit.cache_key import cache_key
from npu_ce_jit.jit.loader import load
from npu_ce_jit.jit.store import Artifact, Store, set_aside
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

    One that it refuses from the cache may come from a machine with newer system libraries: it is built anew.
    """
    found = obtain(target, settings, toolchain, may_build=False)
    if found is not None:
        try:
            return _loaded(found, switches)
        except LoadError as error:
            _logger.warning("%s", error)
    built = obtain(target, settings, toolchain, may_build=may_build)
    return built and _loaded(built, switches)


def _loaded(artifact: Artifact, switches: Mapping[str, bool]) -> Artifact:
    try:
        load(artifact, switches)
    except LoadError:
        set_aside(artifact.entry_dir)
        raise
    return artifact
