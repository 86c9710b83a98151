# SPDX-License-Identifier: Apache-2.0
"""Other sources, or other values of their macros, for the kernels of the running process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from npu_ce_jit import bootstrap
from npu_ce_jit.errors import BuildError, LoadError, NpuCeJitError, SelfCheckError, ToolchainError
from npu_ce_jit.interactive.info import Info, state_of
from npu_ce_jit.jit.cache.entry import Artifact, refuse_here
from npu_ce_jit.jit.loader import find_or_build, on_trial, open_library, use
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.targets import Target, cpu_target, npu_target
from npu_ce_jit.op import registration, self_check
from npu_ce_jit.session import Kernels, State

DeviceType = Literal["cpu", "npu"]


class Rebuilt(Info):
    """Plain data, ready for JSON, that is shown as a table.

    Keys: sources (their directory), defines, and for each target that was rebuilt, cpu or npu, what `info` says of it,
    with built (False where it was in the cache) and seconds (that building or finding it took).
    """

    def _groups(self) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        rows = [("sources", self["sources"]), ("defines", ", ".join(self["defines"]) or "none")]
        for name, title in (("cpu", "CPU kernels"), ("npu", "NPU kernels")):
            if name in self:
                one = self[name]
                how = f"built in {one['seconds']:.1f} s" if one["built"] else "found in the cache"
                when = "" if one["state"] == "loaded" else ", opened at the first call"
                rows.append((title, f"{how}{when}, {one['library']}"))
        yield "rebuilt", rows


def rebuild(
    defines: Mapping[str, str | int | None] | None = None,
    sources: str | PathLike[str] | None = None,
    *,
    device: DeviceType | None = None,
    check: bool = True,
) -> Rebuilt:
    """Builds the kernels from other sources or with other macros, and has this process use them from the next call on.

    Everything is built before any kernel is replaced. Where a source does not compile, a library does not load or fails
    the check, or the build is interrupted, the kernels from before go on computing; `info()` then shows the problem and
    `build_log()` the log of the build that failed. Calls in other threads run on one set of kernels or the other. What
    was built is kept in the cache like every other build, so coming back to it takes no compiler.

    The operators stay as they are, and with them autograd, graphs that are compiled already, vmap and FakeTensor. A
    library that was used stays open until the process ends: other threads and queued launches may be in it.

    Kernels for an NPU that no call has used yet are built here, and opened and checked by the first call, as always. A
    kernel that makes an NPU fail takes the device with it: no other kernel runs there before the program starts again.

    Args:
        defines: Macros for all compilers, for instance `{"NPU_CE_BLOCK_ELEMS": 512}`. None is a macro without value.
        sources: A directory with csrc/ and ascendc/, for instance an edited copy of `info()["sources"]`. Without it the
            installed sources, read anew: in a checkout, an edit is seen.
        device: The device of the kernels. Without it the CPU's, and an NPU's where this process has some.
        check: Whether the new kernels must first compute something small that is known.

    Raises:
        ValueError, TypeError: an argument is not what it should be.
        ToolchainError: something that a build needs is not here.
        BuildError: a compiler refused; it has the compiler's output.
        LoadError: the linker refused the library.
        SelfCheckError: the kernels compute wrongly.
    """
    if device not in (None, "cpu", "npu"):
        raise ValueError(f"expected device to be 'cpu', 'npu' or None, got {device!r}")
    chosen = Sources.installed() if sources is None else _sources_in(Path(sources))
    chosen = chosen.with_defines(defines or {})
    session = bootstrap.run()
    builds = {name: _build(name, session, chosen) for name in _names(device, session)}
    session = bootstrap.change(lambda session: _exchanged(session, builds, chosen, check=check))
    result = Rebuilt(sources=str(chosen.root_dir), defines=list(chosen.defines))
    for name, build in builds.items():
        result[name] = {**state_of(getattr(session, name)), "built": build.was_built, "seconds": build.seconds}
    return result


class _Build(NamedTuple):
    target: Target
    artifact: Artifact
    was_built: bool
    seconds: float


def _sources_in(directory: Path) -> Sources:
    if not (directory / "csrc").is_dir():
        raise ValueError(f"sources: expected a directory with csrc/ and ascendc/, got {str(directory)!r} without csrc/")
    return Sources.of(directory.absolute())  # compilers run in another directory


def _names(device: DeviceType | None, session: State) -> list[DeviceType]:
    if device is not None:
        return [device]
    # A problem that is not one of missing tools counts too: other sources may solve it.
    has_npu_kernels = session.npu.state != "none" or not isinstance(session.npu.problem, ToolchainError | None)
    return ["cpu", "npu"] if has_npu_kernels else ["cpu"]


def _build(name: DeviceType, session: State, sources: Sources) -> _Build:
    settings, toolchain = session.settings, session.toolchain
    if name == "npu" and sources.npu is None:
        raise BuildError(
            f"There are no kernels for an NPU below {sources.root_dir}: expected ascendc/ and csrc/npu/.",
            "Copy both, or call rebuild(..., device='cpu').",
        )
    start = time.perf_counter()
    with _kept_in_session(name):
        target = {"cpu": cpu_target, "npu": npu_target}[name](settings, toolchain, sources)
        found = find_or_build(target, settings, toolchain, may_build=False)
        artifact = found or find_or_build(target, settings, toolchain, may_build=True)
    assert artifact is not None, "find_or_build raises where it may build and cannot"
    return _Build(target, artifact, found is None, round(time.perf_counter() - start, 3))


def _exchanged(session: State, builds: Mapping[DeviceType, _Build], sources: Sources, *, check: bool) -> State:
    """The session with these kernels in use. Where one of them fails, it raises and leaves those from before in use."""
    before: dict[DeviceType, Kernels] = {name: getattr(session, name) for name in builds}
    after: dict[str, Any] = {}
    with contextlib.ExitStack() as undo:
        for name, build in builds.items():
            after[name] = Kernels("loaded", build.artifact, sources=sources)
            with _kept_in_session(name):
                if before[name].state == "loaded":
                    _open(build)
                    if check:
                        with on_trial(build.artifact):
                            _require_right(name)
                elif name == "cpu":  # so far the reference computes: there are no kernels to try these beside
                    _open(build)
                    undo.callback(registration.cover, torch.device(name))
                    use(build.artifact)
                    registration.uncover(torch.device(name))
                    if check:
                        _require_right(name)
                else:
                    after[name] = after[name]._replace(state="built")
        for name, kernels in before.items():
            if kernels.state == "loaded" and kernels.artifact is not None:
                undo.callback(use, kernels.artifact)
                use(builds[name].artifact)
        undo.pop_all()
    return session._replace(**after)


def _open(build: _Build) -> None:
    try:
        open_library(build.artifact, build.target.switches)
    except LoadError:
        refuse_here(build.artifact)
        raise


def _require_right(name: DeviceType) -> None:
    """Raises SelfCheckError. The sources are at fault, so the flags that they were built with are not rejected."""
    device = torch.device(name) if name == "cpu" else torch.device(name, torch.get_device_module(name).current_device())
    try:
        self_check.run(device)
    except SelfCheckError as error:
        raise SelfCheckError(
            error.fact,
            "The kernels from before are in use. Mend the sources and call rebuild again, or call "
            "rebuild(..., check=False) to use these all the same.",
        ) from error


@contextlib.contextmanager
def _kept_in_session(name: DeviceType) -> Iterator[None]:
    """Keeps an error of the block in the session, where `info` and `build_log` find it."""
    try:
        yield
    except NpuCeJitError as error:
        problem = error
        bootstrap.change(lambda session: session._replace(**{name: getattr(session, name)._replace(problem=problem)}))
        raise
