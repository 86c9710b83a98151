# SPDX-License-Identifier: Apache-2.0
"""The map of the repository: what happens at import, one step a line. The only module that knows jit/ and op/."""

import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch

from npu_ce_jit.errors import NpuCeJitError, SelfCheckError, SettingsError, ToolchainError
from npu_ce_jit.jit.cache.entry import Artifact, knows, reject, remember
from npu_ce_jit.jit.loader import obtain, obtain_open, use
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.targets import cpu_target, npu_target
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.log import set_up_log, warn
from npu_ce_jit.settings import Settings

_logger = logging.getLogger("npu_ce_jit")

T = TypeVar("T")


class Kernels(NamedTuple):
    """One target in this process.

    "built" is in the cache and opened at the first call, "lazy" is built then as well, "none" has no library.
    `problem` is why there is none, or none of what was asked for last.
    """

    state: Literal["loaded", "built", "lazy", "none"] = "none"
    artifact: Artifact | None = None
    problem: NpuCeJitError | None = None
    sources: Sources | None = None  # where a rebuild chose others than those of the session

    @property
    def key_name(self) -> str | None:
        return self.artifact.entry_dir.parent.name if self.artifact else None


class Session(NamedTuple):
    """What this process runs on, and why."""

    settings: Settings
    toolchain: Toolchain
    sources: Sources | None = None
    cpu: Kernels = Kernels()
    npu: Kernels = Kernels()
    seconds: Mapping[str, float] = {}  # by step

    @property
    def backend(self) -> Literal["cpp", "reference", "lazy"]:
        """What computes on the CPU; "lazy" until the first call decides."""
        return "cpp" if self.cpu.state == "loaded" else "lazy" if self.cpu.state == "lazy" else "reference"


_session: Session | None = globals().get("_session")  # a reload of this module changes nothing of what is loaded
_lock = threading.RLock()  # a self-check calls operators, which may come back here


def current() -> Session | None:
    """The session of this process as it is now; None before `run`."""
    return _session


def run(*, load: bool = True) -> Session:
    """Registers the operators, gives them the best CPU kernels this machine can have, and prepares those for an NPU.

    Never raises for want of a compiler: one RuntimeWarning a target says what is missing. Nothing of the NPU is loaded
    and no ACL function called: users choose a device later, and fork. Without `load` the cache is not looked at until a
    call needs a library or `load_all` asks for it.
    """
    global _session
    if _session is not None:
        return _session
    from npu_ce_jit.op import registration

    registration.define()
    settings = Settings.from_env(os.environ)
    set_up_log(settings.log_level)
    start = time.perf_counter()
    toolchain = Toolchain(settings)
    sources, problem = _attempt(Sources.installed)
    session = Session(settings, toolchain, sources, cpu=Kernels(problem=problem))
    may_build = settings.build == "eager"
    if sources is not None and not load:
        put_off = Kernels("lazy")
        session = session._replace(cpu=put_off, npu=put_off if sources.npu is not None else Kernels())
    elif sources is not None:
        session = session._replace(cpu=_load_cpu(session, may_build=may_build))
        loaded = time.perf_counter()
        session = session._replace(npu=_prepare_npu(session, sources, may_build=may_build))
        seconds = {"CPU library": loaded - start, "NPU libraries": time.perf_counter() - loaded}
        session = session._replace(seconds=seconds)
    _session = session
    registration.use_loader(_load_for)
    _warn(*settings.problems, session.cpu.problem)
    if toolchain.has_npu_software and may_build and load:
        _warn(session.npu.problem, consequence="Tensors on an NPU are refused")
    return session


def load_all(*, may_build: bool) -> Session:
    """Does what `run` has put off. Raises nothing: the session holds each target's problem."""
    global _session
    with _lock:
        session = run()
        sources, may_build = session.sources, may_build and session.settings.build != "never"
        if sources is not None and session.cpu.state == "lazy":
            session = session._replace(cpu=_load_cpu(session, may_build=may_build))
        if sources is not None and session.npu.state == "lazy":
            session = session._replace(npu=_prepare_npu(session, sources, may_build=may_build))
        _session = session
    return session


def change(step: Callable[[Session], Session]) -> Session:
    """Puts what `step` makes of the session in its place; a call that needs a library waits. Raises what it raises."""
    global _session
    with _lock:
        _session = session = step(run())
    return session


def is_command_line(words: Sequence[str]) -> bool:
    """Whether a process was started, with these words, as one of this package's commands.

    Those that look after the cache must find it as it is, and work where nothing can be built.
    """
    as_module = ("-m", "npu_ce_jit") in itertools.pairwise(words)
    return as_module or any(os.path.basename(word) == "npu-ce-jit" for word in words[1:2])


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)  # another thread may have held it, and is not in the child


def _load_for(device: torch.device) -> bool:
    """Whether the kernels for this device are loaded now. The first of many threads decides for all of them.

    Raises NotImplementedError with the reason and the cure where a device has no kernels and no reference.
    """
    global _session
    with _lock:
        session = _session
        assert session is not None, "use_loader is called by run() only"
        if device.type == "cpu":
            if session.cpu.state == "lazy":
                may_build = session.settings.build != "never"
                _session = session = session._replace(cpu=_load_cpu(session, may_build=may_build))
                _warn(session.cpu.problem)
            return session.cpu.state == "loaded"
        if session.npu.state in ("built", "lazy"):
            if "torch_npu" not in sys.modules:
                raise NotImplementedError(
                    f"expected a device of torch_npu, got {device} of another backend: torch_npu is not imported"
                )
            _session = session = session._replace(npu=_load_npu(session, device))
        if session.npu.state == "loaded":
            return True
        problem = session.npu.problem
        if problem is not None:
            raise NotImplementedError(f"npu_ce_jit has no kernels for {device}. {problem}") from problem
        return False


def try_npu(device: torch.device) -> tuple[Session, NpuCeJitError | None]:
    """Loads the kernels for an NPU and checks them, also where they were known to be right; and what was wrong."""
    global _session
    with _lock:
        _, problem = _attempt(lambda: _load_for(device))
        session = _session
        assert session is not None
        if session.npu.artifact is None:
            return session, session.npu.problem or problem
        kernels, problem = _checked(session.npu, device)
        _session = session = session._replace(npu=kernels)
        return session, problem


def _load_cpu(session: Session, *, may_build: bool) -> Kernels:
    from npu_ce_jit.op import registration

    settings, toolchain, sources = session.settings, session.toolchain, session.sources
    assert sources is not None
    artifact, problem = _attempt(
        lambda: obtain_open(cpu_target(settings, toolchain, sources), settings, toolchain, may_build=may_build)
    )
    if artifact is not None:
        use(artifact)
        registration.uncover(torch.device("cpu"))
        return Kernels("loaded", artifact)
    if may_build or (settings.build == "never" and settings.prebuilt_dirs):
        return Kernels(problem=problem)
    _logger.info("no C++ kernels: %s", problem or "nothing is built yet")
    return Kernels("none" if settings.build == "never" else "lazy")


def _prepare_npu(session: Session, sources: Sources, *, may_build: bool) -> Kernels:
    """Finds or builds the NPU libraries, and loads nothing."""
    settings, toolchain = session.settings, session.toolchain
    if sources.npu is None:
        return Kernels()
    artifact, problem = _attempt(
        lambda: obtain(npu_target(settings, toolchain, sources), settings, toolchain, may_build=may_build)
    )
    if artifact is not None:
        return Kernels("built", artifact)
    if problem is None and settings.build != "never":
        return Kernels("lazy")
    return Kernels(problem=problem or _not_built())


def _load_npu(session: Session, device: torch.device) -> Kernels:
    """Loads the NPU libraries and, where this chip never ran them, has them compute something that is known."""
    global _session
    from npu_ce_jit.op import registration, self_check

    settings, toolchain, sources = session.settings, session.toolchain, session.npu.sources or session.sources
    assert sources is not None
    may_build = settings.build != "never"

    def load() -> Artifact | None:
        self_check.require_supported(device)
        target = npu_target(settings, toolchain, sources)
        return obtain_open(target, settings, toolchain, may_build=may_build)

    artifact, problem = _attempt(load)
    if artifact is None:
        return Kernels(problem=problem or _not_built())
    use(artifact)
    registration.uncover(device)
    kernels = session.npu._replace(state="loaded", artifact=artifact)
    if not knows(artifact, _passed_on(device)):
        _session = session._replace(npu=kernels)  # the check's operators may come back to _load_for
        return _checked(kernels, device)[0]
    return kernels


def _checked(kernels: Kernels, device: torch.device) -> tuple[Kernels, NpuCeJitError | None]:
    """The kernels that are loaded, or none where they compute wrongly; and what was wrong."""
    from npu_ce_jit.op import registration, self_check

    artifact = kernels.artifact
    assert artifact is not None
    _, problem = _attempt(lambda: self_check.run(device))
    if isinstance(problem, SelfCheckError):
        reject(artifact, problem.fact)
        registration.cover(device)
        return Kernels(problem=problem), problem
    if problem is None:
        remember(artifact, _passed_on(device))
    else:
        _logger.warning("the NPU kernels could not be checked, and the next process will try again: %s", problem)
    return kernels, problem


def _passed_on(device: torch.device) -> str:
    from npu_ce_jit.op import self_check

    return f"passed the self-check on {self_check.chip(device)}"


def _not_built() -> NpuCeJitError:
    return ToolchainError(
        "The NPU kernels are not built, and NPU_CE_JIT_BUILD=never.", "Set NPU_CE_JIT_BUILD=eager or lazy, or unset it."
    )


def _attempt(step: Callable[[], T]) -> tuple[T | None, NpuCeJitError | None]:
    """The result, or the problem: no fault, nor one of ours, may take the reference away."""
    try:
        return step(), None
    except NpuCeJitError as error:
        return None, error
    except Exception as error:  # noqa: BLE001
        problem = NpuCeJitError(f"Unexpected {type(error).__name__}: {error}.", "Please report it.")
        problem.__cause__ = error
        return None, problem


def _warn(*problems: NpuCeJitError | None, consequence: str = "The slower reference implementation is used") -> None:
    for problem in problems:
        if problem is not None:
            said = "" if isinstance(problem, SettingsError) else f"{consequence}. "
            warn(f"npu_ce_jit: {said}{problem}")
