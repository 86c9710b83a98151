# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
import types

import pytest
import torch

from npu_ce_jit import bootstrap
from npu_ce_jit.cli import doctor, main
from npu_ce_jit.errors import BuildError, SelfCheckError, ToolchainError
from npu_ce_jit.jit.cache.entry import Artifact
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A session with its cache below `tmp_path`, which the commands get instead of this process's own."""

    def make(**changes):
        settings = Settings.from_env({"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"})
        made = bootstrap.State(settings, Toolchain(settings), cpu=bootstrap.Kernels(**changes))
        monkeypatch.setattr(bootstrap, "run", lambda: made)
        monkeypatch.setattr(bootstrap, "load_all", lambda may_build: made)
        return made

    return make


def test_an_unknown_command_exits_with_2_and_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["frobnicate"])
    assert caught.value.code == 2
    assert "doctor" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["doctor", "--frobnicate"], ["doctor", "extra"]])
def test_a_bad_command_line_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2


def test_a_machine_whose_kernels_did_not_build_is_not_healthy(session, capsys):
    session(problem=BuildError("It did not compile.", "Mend it.", "g++ x", ("x: error: y",), "/cache/log"))
    assert main.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "fail  CPU kernels" in out
    assert "x: error: y" in out
    assert "Mend it." in out


def test_elsewhere_than_on_linux_the_reference_is_healthy(session):
    made = session(problem=BuildError("Linux only."))
    toolchain = made.toolchain.replace(system=made.toolchain.system._replace(value="Darwin"))
    assert doctor.is_healthy(doctor.examine(made._replace(toolchain=toolchain)))


def test_a_bad_variable_is_a_warning_with_its_cure(session):
    made = session()
    made = made._replace(
        settings=Settings.from_env({"MAX_JOBS": "many", "TMPDIR": str(made.settings.cache_dir.parent)})
    )
    check = doctor.examine(made)[0]
    assert check.verdict == "warn"
    assert "MAX_JOBS" in check.found
    assert "MAX_JOBS" in check.hint


def test_a_place_that_cannot_hold_the_cache_is_a_failure_only_where_no_other_can(session, tmp_path):
    (tmp_path / "file").touch()
    nowhere = {name: str(tmp_path / "file" / "x") for name in ("NPU_CE_JIT_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    for tmp_dir, verdicts in ((tmp_path, ["warn"] * 3 + ["ok"]), (tmp_path / "file", ["warn"] * 3 + ["fail"])):
        settings = Settings.from_env(nowhere | {"TMPDIR": str(tmp_dir)})
        checks = doctor.examine(session()._replace(settings=settings))
        assert [check.verdict for check in checks if check.name == "cache"] == verdicts


def test_the_report_for_programs_holds_every_check(session, capsys):
    session()
    assert main.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    assert report["backend"] == "reference"
    names = {check["name"] for check in report["checks"]}
    assert names >= {"system", "torch", "C++ compiler", "ninja", "CANN", "torch_npu", "cache", "CPU kernels"}
    for check in report["checks"]:
        assert set(check) == {"name", "verdict", "found", "evidence", "hint"}
        assert check["verdict"] in ("ok", "warn", "fail")


def test_a_cpu_machine_without_cann_is_told_so_without_alarm(session):
    checks = {check.name: check for check in doctor.examine(session())}
    if checks["CANN"].found == "none" and checks["torch_npu"].found == "none":
        assert checks["CANN"].verdict == checks["torch_npu"].verdict == "ok"


def test_half_an_npu_set_up_is_a_warning(session, tmp_path):
    made = session()
    settings = made.settings._replace(ascend_home=tmp_path)
    checks = {check.name: check for check in doctor.examine(made._replace(toolchain=Toolchain(settings)))}
    assert checks["CANN"].verdict == "ok"
    assert checks["CANN version"].verdict == "warn"


def _npu_kernels(session, **kernels):
    made = session()._replace(npu=bootstrap.Kernels(**kernels))
    known = made.toolchain.facts()
    present = {name: known[name]._replace(value="x") for name in ("torch_npu_version", "cann_home")}
    checks = {check.name: check for check in doctor.examine(made._replace(toolchain=made.toolchain.replace(**present)))}
    return checks.get("NPU kernels"), made


def test_npu_kernels_that_are_built_are_shown_with_their_flags(session, tmp_path):
    artifact = Artifact(
        tmp_path / "key" / "e-1",
        tmp_path / "key" / "e-1" / "lib.so",
        {"bisheng_flags": "cce-vec", "bisheng_flags_tried": ["asc: no", "cce-vec: works"]},
    )
    for state, said in (("built", "built, and loaded at the first call"), ("loaded", "loaded")):
        check, made = _npu_kernels(session, state=state, artifact=artifact)
        assert check.verdict == "ok"
        assert check.found == f"{said}; bisheng's flags: cce-vec"
        assert check.evidence == str(artifact.library)
        report = doctor.as_json(made, [])["npu"]
        assert report == {
            "state": state, "key": "key", "library": str(artifact.library), "bisheng_flags": "cce-vec",
            "bisheng_flags_tried": ["asc: no", "cce-vec: works"], "rebuilt_from": None, "problem": None,
        }  # fmt: skip


def test_npu_kernels_that_did_not_build_fail_with_every_attempt(session):
    lines = ("asc: error: a", "cce-soc: error: b", "cce-vec: error: c")
    problem = BuildError("It compiles nothing.", "Mend CANN.", "bisheng x", lines, "/cache/log")
    check, _ = _npu_kernels(session, problem=problem)
    assert check.verdict == "fail"
    assert all(line in check.evidence for line in lines)
    assert "/cache/log" in check.evidence
    assert check.hint == "Mend CANN."


def test_npu_kernels_of_a_machine_without_npu_software_are_no_failure(session):
    made = session()._replace(npu=bootstrap.Kernels(problem=BuildError("No torch_npu.", "Install it.")))
    absent = made.toolchain.cann_home._replace(value=None)
    made = made._replace(toolchain=made.toolchain.replace(cann_home=absent))
    (check,) = (check for check in doctor.examine(made) if check.name == "NPU kernels")
    assert check.verdict == "ok"
    assert check.hint == "Install it."


def test_a_package_without_npu_kernels_says_nothing_of_them(session):
    assert _npu_kernels(session)[0] is None


@pytest.mark.parametrize("problem", [None, SelfCheckError("expected loss = 1, got 2.", "Report it.")], ids=str)
def test_doctor_has_the_npu_kernels_compute(session, capsys, monkeypatch, problem):
    made = session()
    built = made._replace(npu=bootstrap.Kernels("built"))
    after = made._replace(npu=bootstrap.Kernels("loaded") if problem is None else bootstrap.Kernels(problem=problem))
    monkeypatch.setattr(bootstrap, "load_all", lambda may_build: built)
    monkeypatch.setattr(bootstrap, "try_npu", lambda device: (after, problem))
    monkeypatch.setattr(doctor, "require_npu", lambda: torch.device("privateuseone", 0))
    assert main.main(["doctor", "--json"]) == (0 if problem is None else 1)
    report = json.loads(capsys.readouterr().out)
    assert report["npu"]["state"] == ("loaded" if problem is None else "none"), "as it is after the check"
    (check,) = (check for check in report["checks"] if check["name"] == "NPU self-check")
    if problem is None:
        assert (check["verdict"], check["found"]) == ("ok", "passed")
    else:
        assert (check["verdict"], check["found"]) == ("fail", "failed")
        assert (check["evidence"], check["hint"]) == ("expected loss = 1, got 2.", "Report it.")


def test_doctor_without_a_device_says_that_nothing_was_checked(session, monkeypatch):
    def no_npu():
        raise ToolchainError("No NPU: torch_npu sees no device.", "See npu-smi.")

    monkeypatch.setattr(doctor, "require_npu", no_npu)
    made = session()._replace(npu=bootstrap.Kernels("built"))
    assert doctor.try_npu(made) == (
        made, [doctor.Check("NPU self-check", "warn", "not run", "No NPU: torch_npu sees no device.", "See npu-smi.")],
    )  # fmt: skip
    without = made._replace(npu=bootstrap.Kernels())
    assert doctor.try_npu(without) == (without, [])


def test_the_report_holds_no_environment(session, capsys, monkeypatch):
    made = session()
    monkeypatch.setattr(
        bootstrap, "run", lambda: made._replace(settings=made.settings._replace(environment={"TOKEN": "s3cret"}))
    )
    main.main(["doctor", "--json"])
    assert "s3cret" not in capsys.readouterr().out


@pytest.mark.parametrize(("command", "name"), [("bench", "bench.command"), ("demo", "cli.demo")])
def test_what_computes_gets_its_arguments(monkeypatch, command, name):
    got = []
    module = types.ModuleType(f"npu_ce_jit.{name}")
    setattr(module, f"run_{command}", lambda arguments: got.append(arguments) or 0)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert main.main([command, "--quick"]) == 0
    assert got == [["--quick"]]
