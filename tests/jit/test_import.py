# SPDX-License-Identifier: Apache-2.0
"""`import npu_ce_jit` in fresh processes, with toy sources in place of the real ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from toy_package import copy_package, needs_compiler, run_python, write_npu_sources, write_sources

REPORT = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import npu_ce_jit
    from npu_ce_jit import bootstrap
session = bootstrap.current()
print(json.dumps({
    "backend": session.backend,
    "artifact": str(session.cpu.artifact.library) if session.cpu.artifact else None,
    "warnings": [str(one.message) for one in caught if one.category is RuntimeWarning],
}))
"""

COMPUTE = """
import torch
loss = npu_ce_jit.cross_entropy(torch.randn(4, 8, requires_grad=True), torch.tensor([0, 1, 2, 3]))
(loss if isinstance(loss, torch.Tensor) else loss.loss).backward()
"""


def _report(site_dir: Path, code: str = REPORT, **variables: str) -> dict:
    return json.loads(run_python(site_dir, code, **variables).stdout.splitlines()[-1])


@needs_compiler
def test_a_broken_source_is_one_warning_and_the_import_after_its_mending_builds(tmp_path):
    site_dir = copy_package(tmp_path / "site", body="int toy() { return undeclared_name; }\n")
    report = _report(site_dir, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache"))
    assert report["backend"] == "reference"
    (warning,) = report["warnings"]
    assert "undeclared_name" in warning
    assert "command: " in warning
    log = Path(next(line for line in warning.splitlines() if line.startswith("log: ")).removeprefix("log: "))
    assert "undeclared_name" in log.read_text("utf-8")
    write_sources(site_dir / "npu_ce_jit")
    report = _report(site_dir, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache"))
    assert report["backend"] == "cpp"
    assert report["warnings"] == []


def test_without_compiler_home_or_working_directory_the_reference_computes(tmp_path):
    site_dir = copy_package(tmp_path / "site")
    gone = tmp_path / "gone"
    gone.mkdir()
    # torch first: in a removed working directory, importing its MKL ends the process
    code = f"import os, torch; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); os.environ.pop('HOME', None)\n{REPORT}"
    code += f"os.chdir('/')\n{COMPUTE}"
    report = _report(site_dir, code, PATH="", TMPDIR=str(tmp_path), MAX_JOBS="many")
    assert report["backend"] == "reference"
    bad_variable, missing = report["warnings"]
    assert "MAX_JOBS: expected a whole number" in bad_variable
    assert "No C++ compiler" in missing
    assert "set CXX" in missing


def test_without_ninja_the_warning_says_how_to_get_it(tmp_path):
    site_dir = copy_package(tmp_path / "site")
    (site_dir / "ninja").mkdir()
    (site_dir / "ninja" / "__init__.py").write_text("raise ImportError('no ninja here')", "utf-8")
    compilers = tmp_path / "bin"
    compilers.mkdir()
    (compilers / "g++").symlink_to(shutil.which("g++") or shutil.which("c++") or "/nowhere")
    code = f"import sys; sys.executable = '/nowhere/python'\n{REPORT}"
    report = _report(site_dir, code, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache"), PATH=str(compilers))
    assert report["backend"] == "reference"
    (warning,) = report["warnings"]
    assert "pip install ninja" in warning or "No C++ compiler" in warning


@needs_compiler
def test_awkward_names_of_the_installation_the_cache_and_the_temporary_directory_do_no_harm(tmp_path):
    name = 'it\'s $HOME `id` "ü-名" ;&'
    site_dir = copy_package(tmp_path / name / "site")
    report = _report(site_dir, NPU_CE_JIT_CACHE_DIR=str(tmp_path / name / "cache"), TMPDIR=str(tmp_path / name))
    assert report["backend"] == "cpp"
    assert report["warnings"] == []
    assert report["artifact"].startswith(str(tmp_path / name / "cache"))


def test_a_newline_in_the_name_of_the_installation_or_of_the_cache_is_told_and_the_reference_computes(tmp_path):
    site_dir = copy_package(tmp_path / "a\nb" / "site")
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "c\nd"), "TMPDIR": str(tmp_path)}
    report = _report(site_dir, REPORT.replace("print(", COMPUTE + "print("), HOME=str(tmp_path), **variables)
    assert report["backend"] == "reference"
    bad_variable, bad_place = report["warnings"]
    assert "NPU_CE_JIT_CACHE_DIR: expected an absolute path" in bad_variable
    assert "holds a newline" in bad_place or "No C++ compiler" in bad_place


@needs_compiler
def test_an_installation_that_was_moved_finds_what_it_has_built(tmp_path):
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache")}
    built = _report(copy_package(tmp_path / "old" / "site"), **variables)
    assert built["backend"] == "cpp"
    (tmp_path / "old").rename(tmp_path / "new")
    assert _report(tmp_path / "new" / "site", NPU_CE_JIT_BUILD="never", **variables) == built


def test_with_no_place_for_the_cache_the_import_warns_of_each_and_the_reference_computes(tmp_path):
    site_dir = copy_package(tmp_path / "site")
    (tmp_path / "file").touch()
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "file"), "HOME": str(tmp_path / "file"), "TMPDIR": "/proc/self"}
    report = _report(site_dir, REPORT.replace("print(", COMPUTE + "print("), **variables)
    assert report["backend"] == "reference"
    (warning,) = report["warnings"]
    if "No C++ compiler" not in warning:
        assert f"NPU_CE_JIT_CACHE_DIR: {tmp_path}/file is not a directory" in warning
        assert "HOME: [Errno 20] Not a directory" in warning
        assert "TMPDIR: [Errno " in warning
        assert "set NPU_CE_JIT_CACHE_DIR" in warning


@needs_compiler
def test_a_working_directory_that_cannot_be_written_is_not_written(tmp_path):
    site_dir = copy_package(tmp_path / "site")
    report = _report(site_dir, f"import os; os.chdir('/proc/self')\n{REPORT}", NPU_CE_JIT_CACHE_DIR=str(tmp_path / "c"))
    assert report["backend"] == "cpp"
    assert report["warnings"] == []


@needs_compiler
@pytest.mark.parametrize("home", ["/proc/self/nothing", None])
def test_without_a_writable_home_the_library_is_built_in_the_temporary_directory(tmp_path, home):
    site_dir = copy_package(tmp_path / "site")
    code = REPORT if home else "import os; os.environ.pop('HOME')\n" + REPORT
    report = _report(site_dir, code, HOME=home or "/", TMPDIR=str(tmp_path))
    assert report["backend"] == "cpp"
    assert report["artifact"].startswith(str(tmp_path / f"npu_ce_jit-{os.getuid()}"))


@needs_compiler
@pytest.mark.parametrize(
    ("breakage", "said"),
    [
        ("no compiler", "No bisheng: neither on PATH nor in "),
        ("compiler fails", "licence expired"),
        ("compiler for another machine", "Exec format error"),
    ],
)
def test_a_broken_cann_is_one_warning_with_the_cure_and_leaves_the_cpu_its_kernels(tmp_path, breakage, said):
    site_dir = _copy_with_torch_npu(tmp_path)
    bisheng = tmp_path / "cann" / "bin" / "bisheng"
    bisheng.parent.mkdir(parents=True)
    if breakage != "no compiler":
        bisheng.write_text("#!/bin/sh\necho licence expired; exit 1\n" if "fails" in breakage else "\x7fELF", "utf-8")
        bisheng.chmod(0o755)
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "ASCEND_HOME_PATH": str(tmp_path / "cann")}
    report = _report(site_dir, **variables)
    assert report["backend"] == "cpp"
    (warning,) = report["warnings"]
    assert warning.startswith("npu_ce_jit: Tensors on an NPU are refused. ")
    assert said in warning
    assert "nstall" in warning


def _copy_with_torch_npu(tmp_path: Path) -> Path:
    """The package with sources for both targets, and a torch_npu that must not be imported."""
    site_dir = copy_package(tmp_path / "site")
    write_npu_sources(site_dir / "npu_ce_jit")
    (site_dir / "torch_npu").mkdir()
    (site_dir / "torch_npu" / "__init__.py").write_text("raise SystemExit('imported')", "utf-8")
    (site_dir / "torch_npu" / "version.py").write_text("__version__ = '2.13.0'", "utf-8")
    return site_dir


def test_never_is_silent_and_computes_with_the_reference(tmp_path):
    site_dir = _copy_with_torch_npu(tmp_path)
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "ASCEND_HOME_PATH": str(tmp_path)}
    report = _report(site_dir, NPU_CE_JIT_BUILD="never", **variables)
    assert report == {"backend": "reference", "artifact": None, "warnings": []}
    assert not (tmp_path / "cache").exists()


def test_lazy_builds_at_the_first_call_and_a_failure_then_is_one_warning(tmp_path):
    site_dir = copy_package(tmp_path / "site", body="int toy() { return undeclared_name; }\n")
    first_call = f"assert bootstrap.current().backend == 'lazy'\n    {COMPUTE.strip()}\n{COMPUTE}session ="
    first_call = first_call.replace("\nloss", "\n    loss", 1).replace("\n(loss", "\n    (loss", 1)
    code = REPORT.replace("session =", "    " + first_call)
    report = _report(site_dir, code, NPU_CE_JIT_BUILD="lazy", NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache"))
    assert report["backend"] == "reference"
    (warning,) = report["warnings"]
    assert "reference" in warning
