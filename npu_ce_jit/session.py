# SPDX-License-Identifier: Apache-2.0
"""The kernels that this process runs on, and the lock under which they are found, loaded and replaced."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeVar

import torch

from npu_ce_jit.errors import NpuCeJitError, SelfCheckError, SettingsError, ToolchainError
from npu_ce_jit.jit.cache.entry import Artifact, knows, reject, remember
from npu_ce_jit.jit.loader import find_or_build, load_or_build, use
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.targets import cpu_target, npu_target
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.log import warn
from npu_ce_jit.op import registration
from npu_ce_jit.settings import Settings

_logger = logging.getLogger("npu_ce_jit")

T = TypeVar("T")


class Kernels(NamedTuple):
    """The kernels of one target in this process.

    States: a "built" library is in the cache and is opened at the first call; a "lazy" one is found or built then as
    well; with "none" there is no library. `problem` says why there is none, or why the last rebuild failed.
    """

    state: Literal["loaded", "built", "lazy", "none"] = "none"
    artifact: Artifact | None = None
    problem: NpuCeJitError | None = None
    sources: Sources | None = None  # those of a rebuild; None for the session's

    @property
    def key_name(self) -> str | None:
        return self.artifact.entry_dir.parent.name if self.artifact else None


class State(NamedTuple):
    """What this process runs on, and why. It is immutable: a change makes a new one."""

    settings: Settings
    toolchain: Toolchain
    sources: Sources | None = None
    cpu: Kernels = Kernels()
    npu: Kernels = Kernels()
    seconds: Mapping[str, float] = {}  # of the import, by step

    @property
    def backend(self) -> Literal["cpp", "reference", "lazy"]:
        """What computes on the CPU; "lazy" until the first call decides."""
        return "cpp" if self.cpu.state == "loaded" else "lazy" if self.cpu.state == "lazy" else "reference"


class Session:
    """The state of this process. After import it changes only under the lock; calls that need a library wait for it."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.lock = threading.RLock()  # a self-check calls operators, which may come back to `load_for`
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def load(self) -> None:
        """At import: loads the CPU library, and finds or builds the NPU's, so that its first call needs no compiler."""
        if self.state.sources is None:
            return
        may_build, start = self.state.settings.build == "eager", time.perf_counter()
        self._set(cpu=self._load_cpu(may_build=may_build))
        loaded = time.perf_counter()
        self._set(npu=self._prepare_npu(may_build=may_build))
        self._set(seconds={"CPU library": loaded - start, "NPU libraries": time.perf_counter() - loaded})

    def put_off(self) -> None:
        """Instead of `load`: the first call, or `load_what_is_put_off`, loads the libraries."""
        sources = self.state.sources
        if sources is not None:
            self._set(cpu=Kernels("lazy"), npu=Kernels("lazy" if sources.npu is not None else "none"))

    def load_what_is_put_off(self, *, may_build: bool) -> State:
        """Raises nothing: the state holds each target's problem."""
        with self.lock:
            may_build = may_build and self.state.settings.build != "never"
            if self.state.cpu.state == "lazy":
                self._set(cpu=self._load_cpu(may_build=may_build))
            if self.state.npu.state == "lazy":
                self._set(npu=self._prepare_npu(may_build=may_build))
            return self.state

    def change(self, step: Callable[[State], State]) -> State:
        """Replaces the state by `step(state)`. Raises what `step` raises."""
        with self.lock:
            self.state = step(self.state)
            return self.state

    def load_for(self, device: torch.device) -> bool:
        """Whether the kernels for this device are loaded now. The first of many threads decides for all of them.

        Raises NotImplementedError with the reason and the hint where a device has no kernels and no reference.
        """
        with self.lock:
            if device.type == "cpu":
                if self.state.cpu.state == "lazy":
                    self._set(cpu=self._load_cpu(may_build=self.state.settings.build != "never"))
                    warn_of(self.state.cpu.problem)
                return self.state.cpu.state == "loaded"
            if self.state.npu.state in ("built", "lazy"):
                if "torch_npu" not in sys.modules:
                    raise NotImplementedError(
                        f"expected a device of torch_npu, got {device} of another backend: torch_npu is not imported"
                    )
                self._set(npu=self._load_npu(device))
            if self.state.npu.state == "loaded":
                return True
            problem = self.state.npu.problem
            if problem is not None:
                raise NotImplementedError(f"npu_ce_jit has no kernels for {device}. {problem}") from problem
            return False

    def try_npu(self, device: torch.device) -> tuple[State, NpuCeJitError | None]:
        """Loads the kernels for an NPU and checks them, even if they passed before. Returns what was wrong, too."""
        with self.lock:
            _, problem = attempt(lambda: self.load_for(device))
            if self.state.npu.artifact is None:
                return self.state, self.state.npu.problem or problem
            kernels, problem = self._checked(self.state.npu, device)
            self._set(npu=kernels)
            return self.state, problem

    def _set(self, **changes: object) -> None:
        self.state = self.state._replace(**changes)  # type: ignore[arg-type]

    def _renew_lock(self) -> None:
        self.lock = threading.RLock()  # a thread that held it does not exist in the child

    def _load_cpu(self, *, may_build: bool) -> Kernels:
        settings, toolchain, sources = self.state[:3]
        assert sources is not None, "a session without sources loads no kernels later"
        artifact, problem = attempt(
            lambda: load_or_build(cpu_target(settings, toolchain, sources), settings, toolchain, may_build=may_build)
        )
        if artifact is not None:
            use(artifact)
            registration.uncover(torch.device("cpu"))
            return Kernels("loaded", artifact)
        if may_build or (settings.build == "never" and settings.prebuilt_dirs):
            return Kernels(problem=problem)
        _logger.info("no C++ kernels: %s", problem or "nothing is built yet")
        return Kernels("none" if settings.build == "never" else "lazy")

    def _prepare_npu(self, *, may_build: bool) -> Kernels:
        """Finds or builds the NPU libraries, and loads nothing."""
        settings, toolchain, sources = self.state[:3]
        assert sources is not None, "a session without sources loads no kernels later"
        if sources.npu is None:
            return Kernels()
        artifact, problem = attempt(
            lambda: find_or_build(npu_target(settings, toolchain, sources), settings, toolchain, may_build=may_build)
        )
        if artifact is not None:
            return Kernels("built", artifact)
        if problem is None and settings.build != "never":
            return Kernels("lazy")
        return Kernels(problem=problem or _not_built())

    def _load_npu(self, device: torch.device) -> Kernels:
        """Loads the NPU libraries and, where this chip never ran them, has them compute something that is known."""
        from npu_ce_jit.op import self_check

        settings, toolchain = self.state[:2]
        sources = self.state.npu.sources or self.state.sources
        assert sources is not None, "without sources there are no NPU kernels to load"

        def load() -> Artifact | None:
            self_check.require_supported(device)
            target = npu_target(settings, toolchain, sources)
            return load_or_build(target, settings, toolchain, may_build=settings.build != "never")

        artifact, problem = attempt(load)
        if artifact is None:
            return Kernels(problem=problem or _not_built())
        use(artifact)
        registration.uncover(device)
        kernels = self.state.npu._replace(state="loaded", artifact=artifact)
        if not knows(artifact, _passed_on(device)):
            self._set(npu=kernels)  # the check's operators may come back to `load_for`
            return self._checked(kernels, device)[0]
        return kernels

    def _checked(self, kernels: Kernels, device: torch.device) -> tuple[Kernels, NpuCeJitError | None]:
        """Runs the self-check. Returns the kernels, without a library if they compute wrongly, and what was wrong."""
        from npu_ce_jit.op import self_check

        artifact = kernels.artifact
        assert artifact is not None, "what is loaded has a library"
        _, problem = attempt(lambda: self_check.run(device))
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


def attempt(step: Callable[[], T]) -> tuple[T | None, NpuCeJitError | None]:
    """The result, or the problem. No exception, not even a bug of ours, may stop a call that the reference can take."""
    try:
        return step(), None
    except NpuCeJitError as error:
        return None, error
    except Exception as error:  # noqa: BLE001
        problem = NpuCeJitError(f"Unexpected {type(error).__name__}: {error}.", "Please report it.")
        problem.__cause__ = error
        return None, problem


def warn_of(*problems: NpuCeJitError | None, consequence: str = "The slower reference implementation is used") -> None:
    for problem in problems:
        if problem is not None:
            said = "" if isinstance(problem, SettingsError) else f"{consequence}. "
            warn(f"npu_ce_jit: {said}{problem}")
