# SPDX-License-Identifier: Apache-2.0
"""What works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from npu_ce_jit import bootstrap
from npu_ce_jit._version import __version__
from npu_ce_jit.console import Line
from npu_ce_jit.errors import BuildError, NpuCeJitError, ToolchainError
from npu_ce_jit.interactive.info import state_of
from npu_ce_jit.jit.cache.permissions import UntrustedError
from npu_ce_jit.jit.cache.store import Store
from npu_ce_jit.jit.toolchain.finding import Finding
from npu_ce_jit.npu import require_npu
from npu_ce_jit.session import State
from npu_ce_jit.torch_compat import untested_torch

Verdict = Literal["ok", "warn", "fail"]

_MOST_LINES = 8  # of a failed build's report: enough for one line from each set of bisheng's flags
_STYLES: dict[Verdict, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


class Check(NamedTuple):
    """One line of the report. `hint` is empty where there is nothing to do."""

    name: str
    verdict: Verdict
    found: str
    evidence: str = ""
    hint: str = ""


def examine(session: State) -> list[Check]:
    """All checks, from what everything needs to what only some machines have."""
    return [*_settings(session), *_toolchain(session), *_cache(session), _cpu_kernels(session), *_npu_kernels(session)]


def try_npu(session: State) -> tuple[State, list[Check]]:
    """Runs the self-check of the NPU kernels, where there are any. Returns the session afterwards, and the check.

    It makes a context on the first device: whether the kernels work can only be told by running them.
    """
    name = "NPU self-check"
    if session.npu.state == "none":
        return session, []
    try:
        device = require_npu()
    except ToolchainError as error:
        return session, [Check(name, "warn", "not run", error.fact, error.hint)]
    start = time.perf_counter()
    session, problem = bootstrap.try_npu(device)
    if problem is None:
        evidence = f"forward and backward on {device} in {time.perf_counter() - start:.1f} s"
        return session, [Check(name, "ok", "passed", evidence)]
    return session, [Check(name, "fail", "failed", problem.fact, problem.hint)]


def lines(session: State, checks: list[Check]) -> Iterator[Line]:
    """The report for a person: what is wrong has its evidence and its hint below it."""
    for check in checks:
        verdict, name = (f"{check.verdict:4}", _STYLES[check.verdict]), (f"  {check.name}: ", "")
        if check.verdict == "ok":
            yield [verdict, name, (check.found, ""), (f"  ({check.evidence})" if check.evidence else "", "dim")]
            continue
        yield [verdict, name, (check.found, "bold")]
        yield from ([(f"      {line}", "")] for line in check.evidence.splitlines())
        yield from ([(f"      -> {line}", "cyan")] for line in check.hint.splitlines())
    style = _STYLES["ok" if is_healthy(checks) else "fail"]
    yield [(summary(session, checks), style)]


def summary(session: State, checks: list[Check]) -> str:
    """What works here, and what the exit code says of it."""
    failed = [check.name for check in checks if check.verdict == "fail"]
    parts = [f"{', '.join(failed)} failed"] if failed else []
    parts += [_CPU_WORKS[session.backend], _npu_works(session)]
    verdict = "not healthy (exit code 1)" if failed else "healthy (exit code 0)"
    return f"{verdict}: {'; '.join(filter(None, parts))}"


def as_json(session: State, checks: list[Check]) -> dict[str, Any]:
    """The report for a program; `healthy` is what the exit code says."""
    return {
        "npu_ce_jit": __version__,
        "healthy": is_healthy(checks),
        "backend": session.backend,
        "cpu": state_of(session.cpu),
        "npu": state_of(session.npu),
        "seconds": dict(session.seconds),
        "checks": [check._asdict() for check in checks],
    }


def is_healthy(checks: list[Check]) -> bool:
    """Whether the best device of this machine works. A machine without an NPU needs no CANN."""
    return all(check.verdict != "fail" for check in checks)


_CPU_WORKS = {
    "cpp": "the CPU kernels work",
    "lazy": "the CPU kernels are built at the first call",
    "reference": "CPU calls run on the slower reference implementation",
}


def _npu_works(session: State) -> str:
    """The NPU's part of the summary; empty for a package without NPU kernels."""
    if session.npu.state != "none":
        return {
            "loaded": "the NPU kernels work",
            "built": "the NPU kernels are built, and not tried for want of an NPU",
            "lazy": "the NPU kernels are built at the first call",
        }[session.npu.state]
    if session.npu.problem is None:
        return ""
    if _has_no_npu_software(session):
        return "no NPU software here, which is fine"
    what = "there are no NPU kernels" if session.toolchain.has_npu_software else "only half of the NPU software is here"
    return f"{what}, and tensors on an NPU are refused"


def _settings(session: State) -> Iterator[Check]:
    for problem in session.settings.problems:
        yield Check("settings", "warn", problem.fact, "the environment", problem.hint)


def _toolchain(session: State) -> Iterator[Check]:
    toolchain = session.toolchain
    for fact in (toolchain.system, toolchain.machine):
        yield _of_fact(fact, "fail")
    untested = untested_torch()
    if untested is None:
        yield _of_fact(toolchain.torch_version, "fail")
    else:
        yield Check("torch", "warn", toolchain.torch_version.require(), untested.fact, untested.hint)
    # Without a compiler a library that is already in the cache still works, so a missing tool alone is no failure.
    for fact in (toolchain.cpu_isa, toolchain.cxx, toolchain.ninja):
        yield _of_fact(fact, "warn")
    verdict_if_absent: Verdict = "ok" if _has_no_npu_software(session) else "warn"
    for fact in (toolchain.torch_npu_version, toolchain.cann_home):
        yield _of_fact(fact, verdict_if_absent)
    if toolchain.cann_home.value is not None:  # without CANN, each would repeat that there is none
        for fact in (toolchain.cann_version, toolchain.npu_architecture, toolchain.bisheng, toolchain.lld):
            yield _of_fact(fact, verdict_if_absent)


def _has_no_npu_software(session: State) -> bool:
    return session.toolchain.torch_npu_version.value is None and session.toolchain.cann_home.value is None


def _of_fact(fact: Finding, verdict_if_absent: Verdict) -> Check:
    if fact.value is not None:
        return Check(fact.name, "ok", fact.value, fact.where)
    return Check(fact.name, verdict_if_absent, "none", fact.where, fact.hint)


def _cache(session: State) -> Iterator[Check]:
    store = Store.of(session.settings)
    for root, refusal in store.examine():
        if refusal is None:
            yield Check("cache", "ok", str(root.path), root.origin)
            return
        verdict: Verdict = "fail" if root == store.build_roots[-1] else "warn"
        if isinstance(refusal, UntrustedError):
            yield Check("cache", verdict, str(root.path), f"{root.origin}: {refusal.fact}", refusal.hint)
        else:
            hint = "Set NPU_CE_JIT_CACHE_DIR to a directory that you alone can write."
            yield Check("cache", verdict, str(root.path), f"{root.origin}: {refusal}", hint)


def _cpu_kernels(session: State) -> Check:
    name, problem = "CPU kernels", session.cpu.problem
    if session.cpu.artifact is not None:
        return Check(name, "ok", "C++", str(session.cpu.artifact.library))
    if problem is None:
        found = "built at the first call" if session.backend == "lazy" else "the slower reference implementation"
        return Check(
            name, "warn", found, f"NPU_CE_JIT_BUILD={session.settings.build} and nothing built yet",
            "Set NPU_CE_JIT_BUILD=eager to build at import.",
        )  # fmt: skip
    can_have_others = session.toolchain.system.value == "Linux"  # elsewhere the reference is all there is
    verdict: Verdict = "fail" if can_have_others else "warn"
    return Check(name, verdict, "the slower reference implementation", _evidence(problem), problem.hint)


def _npu_kernels(session: State) -> Iterator[Check]:
    name, artifact, problem = "NPU kernels", session.npu.artifact, session.npu.problem
    if artifact is not None:
        found = "loaded" if session.npu.state == "loaded" else "built, and loaded at the first call"
        flag_set = artifact.manifest.get("bisheng_flags")
        yield Check(name, "ok", f"{found}; bisheng's flags: {flag_set}", str(artifact.library))
    elif session.npu.state == "lazy":
        yield Check(name, "ok", "built at the first call", f"NPU_CE_JIT_BUILD={session.settings.build}")
    elif problem is not None:
        verdict: Verdict = "fail" if session.toolchain.has_npu_software else "ok"
        yield Check(name, verdict, "none", _evidence(problem), problem.hint)


def _evidence(problem: NpuCeJitError) -> str:
    if not isinstance(problem, BuildError):
        return problem.fact
    log = [f"Log: {problem.log_path}"] if problem.log_path else []
    return "\n".join([problem.fact, *problem.first_lines[:_MOST_LINES], *log])
