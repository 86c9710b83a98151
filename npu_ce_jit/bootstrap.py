# SPDX-License-Identifier: Apache-2.0
"""What happens at import: the operators are registered, the tools are found, and `Session` loads the kernels."""

import itertools
import os
from collections.abc import Callable, Sequence

import torch

from npu_ce_jit.errors import NpuCeJitError
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.log import set_up_log
from npu_ce_jit.op import registration
from npu_ce_jit.session import Kernels, Session, State, attempt, warn_of
from npu_ce_jit.settings import Settings
from npu_ce_jit.torch_compat import untested_torch

_session: Session | None = globals().get("_session")  # a reload of this module keeps what is loaded


def run(*, load: bool = True) -> State:
    """Registers the operators, gives them the best CPU kernels this machine can have, and prepares those for an NPU.

    A missing compiler raises nothing: one RuntimeWarning for each target says what is missing. No NPU library is loaded
    and no ACL function is called, since users choose a device later, and fork. Without `load`, the cache is not read
    until a call needs a library or `load_all` asks for it.
    """
    global _session
    if _session is not None:
        return _session.state
    registration.define()
    settings = Settings.from_env(os.environ)
    set_up_log(settings.log_level)
    toolchain = Toolchain(settings)
    sources, problem = attempt(Sources.installed)
    session = Session(State(settings, toolchain, sources, cpu=Kernels(problem=problem)))
    if load:
        session.load()
    else:
        session.put_off()
    registration.use_loader(session.load_for)
    _session = session
    warn_of(untested_torch(), consequence="This torch is tried")
    warn_of(*settings.problems, session.state.cpu.problem)
    if toolchain.has_npu_software and settings.build == "eager" and load:
        warn_of(session.state.npu.problem, consequence="Tensors on an NPU are refused")
    return session.state


def current() -> State | None:
    """The state of this process as it is now; None before `run`."""
    return _session.state if _session is not None else None


def load_all(*, may_build: bool) -> State:
    """Loads what `run` has put off. Raises nothing: the state holds each target's problem."""
    return _running().load_what_is_put_off(may_build=may_build)


def change(step: Callable[[State], State]) -> State:
    """Replaces the state by `step(state)`; a call that needs a library waits meanwhile. Raises what `step` raises."""
    return _running().change(step)


def try_npu(device: torch.device) -> tuple[State, NpuCeJitError | None]:
    """Loads the kernels for an NPU and checks them, even if they passed before. Returns what was wrong, too."""
    return _running().try_npu(device)


def is_command_line(words: Sequence[str]) -> bool:
    """Whether a process with this command line runs one of this package's commands.

    Their import builds nothing: those that manage the cache must find it as it is, and work where nothing can be built.
    """
    as_module = ("-m", "npu_ce_jit") in itertools.pairwise(words)
    return as_module or any(os.path.basename(word) == "npu-ce-jit" for word in words[1:2])


def _running() -> Session:
    run()
    assert _session is not None, "run makes it"
    return _session
