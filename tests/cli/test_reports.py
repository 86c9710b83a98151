# SPDX-License-Identifier: Apache-2.0
"""The text of `doctor` on a known machine, its last line on others, and its JSON output."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy_package import copy_package, needs_compiler

import npu_ce_jit
from npu_ce_jit import bootstrap, console
from npu_ce_jit.cli import doctor
from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.toolchain.finding import Finding
from npu_ce_jit.session import Kernels

TEXT = """\
warn  settings: MAX_JOBS: expected a whole number, 1 or more, got 'many'; the default (nothing) is used.
      the environment
      -> Set MAX_JOBS to a whole number, 1 or more, or unset it.
ok    system: Linux  (the running kernel)
ok    machine: MACHINE  (the running kernel)
ok    torch: TORCH  (torch.__version__)
ok    CPU instructions: baseline  (NPU_CE_JIT_CPU_ISA)
ok    C++ compiler: HOME/bin/g++  (CXX)
ok    ninja: NINJA
ok    torch_npu: none  (no module torch_npu)
ok    CANN: none  (ASCEND_HOME_PATH: HOME/cann is no directory)
ok    cache: HOME/.cache/npu_ce_jit  (HOME)
ok    CPU kernels: C++  (HOME/.cache/npu_ce_jit/v1/VERSION-torchTORCH-MACHINE-baseline-KEY/e-ENTRY/libnpu_ce_jit_cpu.so)
healthy (exit code 0): the CPU kernels work
"""

STATE = {"state": str, "key": (str, None), "library": (str, None), "bisheng_flags": (str, None),
    "bisheng_flags_tried": (list, None),
         "rebuilt_from": (str, None), "problem": (str, None)}  # fmt: skip
INFO = {
    "npu_ce_jit": str, "backend": str, "cpu": STATE, "npu": STATE, "sources": (str, None), "seconds": {}, "answers": {},
    "patches": list,
    "roots": [{"path": str, "origin": str, "read_only": bool}],
    "entries": [{
        "kind": str, "key": str, "path": str, "bytes": int, "age": int, "problem": str, "libraries": (dict, None),
        "compiler": (dict, None), "host": (str, None), "started": (str, None), "seconds": (float, None),
    }],
    "found": [{"name": str, "value": (str, None), "where": str, "hint": str}],
}  # fmt: skip
DOCTOR = {
    "npu_ce_jit": str, "healthy": bool, "backend": str, "cpu": STATE, "npu": STATE, "seconds": {},
    "checks": [{"name": str, "verdict": str, "found": str, "evidence": str, "hint": str}],
}  # fmt: skip


def _require_shape(value, shape, where=""):
    """Fails where keys or types differ from the shape."""
    if isinstance(shape, list):
        assert isinstance(value, list) and value, where
        for number, one in enumerate(value):
            _require_shape(one, shape[0], f"{where}[{number}]")
    elif isinstance(shape, dict) and shape:
        assert set(value) == set(shape), where
        for name, one in shape.items():
            _require_shape(value[name], one, f"{where}.{name}")
    elif isinstance(shape, tuple):
        assert value is None or isinstance(value, shape[0]), where
    else:
        assert isinstance(value, shape or dict), where


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A package with toy sources, a home with a compiler, and a variable that names a missing directory."""
    home = tmp_path_factory.mktemp("ada")
    site = copy_package(home / "site")
    (home / "bin").mkdir()
    (home / "bin" / "g++").symlink_to(next(path for path in ("/usr/bin/g++", "/usr/bin/c++") if os.path.exists(path)))
    return home, {
        "PATH": "/usr/bin:/bin", "PYTHONPATH": str(site), "HOME": str(home), "CXX": str(home / "bin" / "g++"),
        "NPU_CE_JIT_CPU_ISA": "baseline", "MAX_JOBS": "many", "ASCEND_HOME_PATH": str(home / "cann"),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }  # fmt: skip


def _output(known, *words: str) -> str:
    home, environment = known
    done = subprocess.run(
        [sys.executable, "-m", "npu_ce_jit", *words],
        env=environment,
        cwd=home / "site",  # first on the path of `-m`
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done
    return done.stdout


@needs_compiler
def test_the_text_of_doctor_on_a_known_machine(known):
    home, version = known[0], npu_ce_jit.__version__
    text = _output(known, "doctor").replace(str(home), "HOME")
    facts = {fact["name"]: fact for fact in npu_ce_jit.info()["found"]}
    expected = TEXT.replace("MACHINE", facts["machine"]["value"]).replace("TORCH", facts["torch"]["value"])
    expected = expected.replace("VERSION", version)
    expected = expected.replace("NINJA", f"{facts['ninja']['value']}  ({facts['ninja']['where']})")
    assert re.sub(r"-[0-9a-f]{12}/e-[0-9a-f]{12}/", "-KEY/e-ENTRY/", text) == expected


@needs_compiler
def test_the_json_of_info_and_doctor(known):
    report = json.loads(_output(known, "doctor", "--json"))
    _require_shape(report, DOCTOR)
    assert report["healthy"] is True
    info = json.loads(_output(known, "info", "--json"))
    _require_shape(info, INFO)
    assert info["cpu"] == report["cpu"]
    assert [entry["kind"] for entry in info["entries"]] == ["entry"]
    _require_shape(dict(npu_ce_jit.info()) | {"entries": info["entries"]}, INFO)


def _machine(has_torch_npu: bool, has_cann: bool, cpu: Kernels, npu: Kernels) -> bootstrap.State:
    session = bootstrap.run()
    toolchain = session.toolchain.replace(
        torch_npu_version=Finding("torch_npu", "2.13.0" if has_torch_npu else None, ""),
        cann_home=Finding("CANN", "/cann" if has_cann else None, ""),
    )
    return session._replace(toolchain=toolchain, cpu=cpu, npu=npu)


LOADED, NONE = Kernels("loaded"), Kernels(problem=BuildError("It failed."))
CPU_WORKS = "the CPU kernels work"
REFERENCE = "CPU calls run on the slower reference implementation"
NO_SOFTWARE = "no NPU software here, which is fine"
UNTRIED = "the NPU kernels are built, and not tried for want of an NPU"
HALF = "only half of the NPU software is here, and tensors on an NPU are refused"
NO_KERNELS = "there are no NPU kernels, and tensors on an NPU are refused"


@pytest.mark.parametrize(
    ("has_torch_npu", "has_cann", "cpu", "npu", "said"),
    [
        (False, False, LOADED, NONE, [CPU_WORKS, NO_SOFTWARE]),
        (False, False, Kernels("lazy"), Kernels(), ["the CPU kernels are built at the first call"]),
        (False, False, NONE, NONE, ["CPU kernels failed", REFERENCE, NO_SOFTWARE]),
        (True, True, LOADED, LOADED, [CPU_WORKS, "the NPU kernels work"]),
        (
            True,
            True,
            LOADED,
            Kernels("built"),
            [CPU_WORKS, UNTRIED],
        ),
        (True, True, LOADED, Kernels("lazy"), [CPU_WORKS, "the NPU kernels are built at the first call"]),
        (True, True, LOADED, NONE, ["NPU kernels failed", CPU_WORKS, NO_KERNELS]),
        (True, False, LOADED, NONE, [CPU_WORKS, HALF]),
        (False, True, LOADED, NONE, [CPU_WORKS, HALF]),
    ],
)
def test_the_last_line_says_what_works_and_what_the_exit_code_means(has_torch_npu, has_cann, cpu, npu, said):
    session = _machine(has_torch_npu, has_cann, cpu, npu)
    verdict = {"CPU kernels": "fail" if cpu.problem else "ok"}
    verdict["NPU kernels"] = "fail" if npu.problem and has_torch_npu and has_cann else "ok"
    checks = [doctor.Check(name, verdict, "") for name, verdict in verdict.items()]
    healthy = "not healthy (exit code 1)" if said[0].endswith("failed") else "healthy (exit code 0)"
    *_, last = doctor.lines(session, checks)
    assert console.plain(last) == f"{healthy}: {'; '.join(said)}"
