# SPDX-License-Identifier: Apache-2.0
"""What the first NPU call does for libraries in every state; functions stand in for the JIT's and report the state."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_package import toy

from npu_ce_jit import bootstrap
from npu_ce_jit import session as session_module
from npu_ce_jit.errors import BuildError, LoadError, SelfCheckError, ToolchainError
from npu_ce_jit.jit.cache.entry import Artifact
from npu_ce_jit.op import registration, self_check
from npu_ce_jit.session import Kernels, Session, State

DEVICE = torch.device("privateuseone", 0)


class Stage:
    """The functions that a session calls, and a record of the calls."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.artifact: Artifact | None = Artifact(tmp_path / "key" / "e-1", tmp_path / "key" / "e-1" / "lib.so", {})
        self.artifact.entry_dir.mkdir(parents=True)
        self.error: Exception | None = None
        self.check_error: Exception | None = None
        self.may_build: bool | None = None
        self.chip = "Ascend910B2"
        self.one = toy(tmp_path)
        self._monkeypatch = monkeypatch
        monkeypatch.setitem(sys.modules, "torch_npu", types.ModuleType("torch_npu"))
        monkeypatch.setattr(session_module, "npu_target", lambda *facts: None)
        monkeypatch.setattr(session_module, "load_or_build", self._load_or_build)
        monkeypatch.setattr(session_module, "use", lambda artifact: None)
        monkeypatch.setattr(self_check, "run", self._check)
        monkeypatch.setattr(self_check, "chip", lambda device: self.chip)
        monkeypatch.setattr(registration, "cover", lambda device: self.calls.append("cover"))

    def begin(self, state: Any = "built", **settings: Any) -> None:
        begun = State(
            self.one.settings._replace(**settings), self.one.toolchain, self.one.target.sources,
            cpu=Kernels("loaded"), npu=Kernels(state),
        )  # fmt: skip
        self._monkeypatch.setattr(bootstrap, "_session", Session(begun))

    def call(self) -> bool:
        return bootstrap._session.load_for(DEVICE)

    def _load_or_build(self, *_: Any, may_build: bool) -> Artifact | None:
        self.calls.append("load")
        self.may_build = may_build
        if self.error:
            raise self.error
        return self.artifact

    def _check(self, device: torch.device) -> None:
        self.calls.append("check")
        assert bootstrap._session.load_for(device), "an operator that the check calls may come by here again"
        if self.check_error:
            raise self.check_error


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


@pytest.mark.parametrize("state", ["built", "lazy"])
def test_the_first_call_loads_and_checks_the_next_does_neither(stage, state):
    stage.begin(state)
    assert stage.call()
    assert stage.call()
    assert stage.calls == ["load", "check"]
    assert bootstrap.current().npu.state == "loaded"
    stage.begin(state)  # as in a new process
    assert stage.call()
    assert stage.calls == ["load", "check", "load"]


def test_many_threads_load_once(stage):
    stage.begin()
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(stage.call())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
    assert stage.calls == ["load", "check"]


@pytest.mark.parametrize(
    "error",
    [
        ToolchainError("No bisheng: x.", "Install it."),
        BuildError("It did not compile.", "Mend it."),
        LoadError("The linker refused it.", "Import again."),
        ValueError("a fault of ours"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_is_told_at_each_call_and_tried_once(stage, error):
    stage.begin()
    stage.error = error
    for _ in range(2):
        with pytest.raises(NotImplementedError) as caught:
            stage.call()
        assert str(error.args[0]) in str(caught.value)
        assert str(DEVICE) in str(caught.value)
    assert stage.calls == ["load"]
    assert bootstrap.current().cpu.state == "loaded"
    assert bootstrap._session.load_for(torch.device("cpu"))


def test_an_interrupted_build_is_tried_again(stage, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    stage.begin("lazy")
    with monkeypatch.context() as patched:
        patched.setattr(session_module, "load_or_build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage.call()
    assert bootstrap.current().npu.state == "lazy"
    assert stage.call()


@pytest.mark.parametrize("chip", ["Ascend310P3", "Ascend910A", "Ascend910_9589"])
def test_a_chip_of_another_kind_is_refused_by_name_before_anything_is_loaded(stage, chip):
    stage.begin()
    stage.chip = chip
    with pytest.raises(NotImplementedError, match=f"begins with Ascend910B or Ascend910_93, got {chip}"):
        stage.call()
    assert stage.calls == []


@pytest.mark.parametrize("chip", ["Ascend910B4", "Ascend910_9382"])
def test_the_chips_of_atlas_a2_and_a3_are_taken(stage, chip):
    stage.begin()
    stage.chip = chip
    assert stage.call()


def test_never_means_never(stage):
    stage.begin(build="never")
    stage.artifact = None
    with pytest.raises(NotImplementedError, match="NPU_CE_JIT_BUILD=never"):
        stage.call()
    assert stage.may_build is False


def test_a_library_that_fails_its_check_is_rejected_with_the_verdict(stage):
    stage.begin()
    stage.check_error = SelfCheckError("expected 1, got 2.", "Report it.")
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="expected 1, got 2"):
            stage.call()
    assert stage.calls == ["load", "check", "cover"]
    assert not stage.artifact.entry_dir.exists()
    (rejected,) = stage.artifact.entry_dir.parent.iterdir()
    assert rejected.name.startswith("rejected-")
    assert (rejected / "verdict").read_text("utf-8") == "expected 1, got 2."


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory on npu:0"),
        RuntimeError("error code is 507010: npu:0 is lost"),
        TypeError("a fault of ours"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_check_that_could_not_be_made_is_no_verdict_and_is_made_by_the_next_process(stage, error):
    stage.begin()
    stage.check_error = error
    assert stage.call()
    assert stage.artifact.entry_dir.exists()
    stage.check_error = None
    stage.begin()
    assert stage.call()
    assert stage.calls == ["load", "check"] * 2


def test_who_asks_for_a_check_gets_one_also_where_it_was_passed_before(stage):
    stage.begin()
    assert stage.call()
    stage.begin()
    session, problem = bootstrap.try_npu(DEVICE)
    assert (session.npu.state, problem) == ("loaded", None)
    assert stage.calls == ["load", "check", "load", "check"]
    stage.check_error = SelfCheckError("expected 1, got 2.", "Report it.")
    session, problem = bootstrap.try_npu(DEVICE)
    assert session.npu == Kernels(problem=stage.check_error)
    assert problem is stage.check_error
    assert not stage.artifact.entry_dir.exists()


def test_who_asks_for_a_check_of_kernels_that_do_not_load_gets_the_reason(stage):
    stage.begin()
    stage.error = LoadError("The linker refused it.", "Import again.")
    session, problem = bootstrap.try_npu(DEVICE)
    assert (session.npu.state, problem) == ("none", stage.error)
    assert stage.calls == ["load"]


def test_another_backend_than_torch_npu_is_not_ours(stage, monkeypatch):
    stage.begin()
    monkeypatch.delitem(sys.modules, "torch_npu")
    with pytest.raises(NotImplementedError, match="torch_npu is not imported"):
        stage.call()
    assert stage.calls == []
    assert bootstrap.current().npu.state == "built", "torch_npu may still be imported"
