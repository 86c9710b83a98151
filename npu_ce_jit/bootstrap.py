# SPDX-License-Identifier: Apache-2.0
"""The map of the repository: what happens at import, one step a line. The only module that knows jit/ and op/."""

import logging
import os
import threading
import time
import warnings
from collections.abc import Mapping
from typing import Literal, NamedTuple

from npu_ce_jit.errors import LoadError, NpuCeJitError, SettingsError
from npu_ce_jit.jit.cache_key import CacheKey, cache_key
from npu_ce_jit.jit.loader import load
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.store import Artifact, Store, set_aside
from npu_ce_jit.jit.toolchain import Toolchain, discover
from npu_ce_jit.log import set_up_log
from npu_ce_jit.settings import Settings

_logger = logging.getLogger("npu_ce_jit")


class Session(NamedTuple):
    """What this process runs on, and why. `backend` is "lazy" until the first call decides."""

    settings: Settings
    toolchain: Toolchain
    backend: Literal["cpp", "reference", "lazy"]
    key_name: str | None = None
    artifact: Artifact | None = None
    problem: NpuCeJitError | None = None
    seconds: Mapping[str, float] = {}  # by step


_session: Session | None = None
_lazy_lock = threading.Lock()


def current() -> Session | None:
    """The session of this process as it is now; None before `run`."""
    return _session


def run() -> Session:
    """Registers the operators and gives them the best kernels this machine can have. Once per process.

    Never raises for want of a compiler: one RuntimeWarning says what is missing, and the reference computes.
    """
    global _session
    if _session is not None:
        return _session
    from npu_ce_jit.op import registration

    registration.define()
    settings = Settings.from_env(os.environ)
    set_up_log(settings.log_level)
    start = time.perf_counter()
    toolchain = discover(settings)
    session = Session(settings, toolchain, "reference", seconds={"discover": time.perf_counter() - start})
    session = _session = _load_library(session, may_build=settings.build == "eager")
    if session.backend == "reference" and settings.build == "lazy":
        session = _session = session._replace(backend="lazy")
        registration.use_lazy(_load_at_first_call)
    for problem in (*settings.problems, session.problem):
        if problem is not None:
            _warn(problem, stacklevel=4)  # the line that imports the package
    return session


def _load_at_first_call() -> bool:
    """Whether the library is loaded now. The first of many threads decides for all of them."""
    global _session
    with _lazy_lock:
        session = _session
        assert session is not None, "use_lazy is called by run() only"
        if session.backend != "lazy":
            return session.backend == "cpp"
        session = _session = _load_library(session, may_build=True)
    if session.problem is not None:
        _warn(session.problem, stacklevel=2)
    return session.backend == "cpp"


def _load_library(session: Session, *, may_build: bool) -> Session:
    """`session` with the backend "cpp", or "reference" and, where a build was wanted, the problem."""
    settings, toolchain, start = session.settings, session.toolchain, time.perf_counter()
    key = artifact = problem = None
    try:
        sources = Sources.installed()
        key = cache_key(settings, toolchain, sources)
        store = Store.of(settings)
        artifact = store.find(key)
        if artifact is not None:
            artifact = _load(artifact, settings)
        if artifact is None and may_build:
            artifact = _build_and_load(settings, toolchain, sources, key, store)
    except NpuCeJitError as error:
        problem = error
    except Exception as error:  # noqa: BLE001  a fault of ours must not take the reference away
        problem = NpuCeJitError(f"Unexpected {type(error).__name__}: {error}.", "Please report it.")
        problem.__cause__ = error
    if problem is not None and not may_build:
        _logger.info("no C++ kernels: %s", problem)
        problem = None
    return session._replace(
        backend="reference" if artifact is None else "cpp",
        key_name=key.name if key else None,
        artifact=artifact,
        problem=problem,
        seconds={**session.seconds, "library": time.perf_counter() - start},
    )


def _load(artifact: Artifact, settings: Settings) -> Artifact | None:
    """None where the linker refuses it: it may come from a machine with newer system libraries."""
    try:
        load(artifact, huge_pages=settings.huge_pages)
    except LoadError as error:
        _logger.warning("%s", error)
        set_aside(artifact.entry_dir)
        return None
    return artifact


def _build_and_load(
    settings: Settings, toolchain: Toolchain, sources: Sources, key: CacheKey, store: Store
) -> Artifact:
    from npu_ce_jit.jit.build import build  # compilers and locks: not on the warm path

    artifact = build(settings, toolchain, sources, key, store)
    try:
        load(artifact, huge_pages=settings.huge_pages)
    except LoadError:
        set_aside(artifact.entry_dir)
        raise
    return artifact


def _warn(problem: NpuCeJitError, stacklevel: int) -> None:
    consequence = "" if isinstance(problem, SettingsError) else "The slower reference implementation is used. "
    warnings.warn(f"npu_ce_jit: {consequence}{problem}", RuntimeWarning, stacklevel=stacklevel)
