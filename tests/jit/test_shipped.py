# SPDX-License-Identifier: Apache-2.0
"""The package in a zip file, and in a frozen application that ships its modules, with or without its sources."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from toy_package import EXPORT, NO_KERNELS, copy_package, needs_compiler, run_python

from npu_ce_jit.errors import ToolchainError
from npu_ce_jit.jit.bisheng.probe import open_words

pytestmark = needs_compiler

REPORT = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import npu_ce_jit
    from npu_ce_jit import bootstrap
session = bootstrap.current()
print(json.dumps({
    "file": npu_ce_jit.__file__,
    "backend": session.backend,
    "library": str(session.cpu.artifact.library) if session.cpu.artifact else None,
    "flags": session.cpu.artifact.manifest["flags"] if session.cpu.artifact else None,
    "warnings": [str(one.message) for one in caught if one.category is RuntimeWarning],
}))
"""
BODY = f'#include "toy.h"\n{NO_KERNELS}{EXPORT} void npu_ce_jit_use(const void*) {{}}\n'
REBUILT = "import npu_ce_jit; npu_ce_jit.rebuild({'TOY_MORE': 1}, device='cpu', check=False)\n"


def _zipped(site_dir: Path) -> Path:
    archive = site_dir.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as files:
        for path in sorted(site_dir.rglob("*")):
            files.write(path, path.relative_to(site_dir))
    return archive


def _report(place: Path, before: str = "", **variables: str) -> dict[str, Any]:
    """The report of a program that finds the package there."""
    said = run_python(place.parent, f"import sys; sys.path.insert(0, {str(place)!r})\n{before}{REPORT}", **variables)
    report: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    assert report["file"].startswith(str(place))
    return report


def test_a_zip_file_builds_from_the_sources_in_it_and_finds_what_it_has_built(tmp_path):
    site_dir = copy_package(tmp_path / "site", BODY)
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache")}
    report = _report(_zipped(site_dir), **variables)
    assert (report["backend"], report["warnings"]) == ("cpp", [])
    assert _report(_zipped(site_dir), NPU_CE_JIT_BUILD="never", **variables) == report
    unzipped = _report(site_dir, NPU_CE_JIT_BUILD="never", **variables)
    assert unzipped["library"] == report["library"], "the same sources have the same key"


def test_a_zip_file_rebuilds_with_other_macros(tmp_path):
    archive = _zipped(copy_package(tmp_path / "site", BODY))
    report = _report(archive, REBUILT, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache"))
    assert "-DTOY_MORE=1" in report["flags"]


@pytest.mark.parametrize("form", ["zipped", "frozen"])
def test_without_sources_it_is_said_how_to_ship_them_and_a_prebuilt_cache_serves(tmp_path, form):
    whole = copy_package(tmp_path / "whole", BODY)
    bare = tmp_path / "bare"
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("csrc"))
    place, before = (_zipped(bare), "") if form == "zipped" else (bare, "sys.frozen = True\n")
    report = _report(place, before, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache"))
    (warning,) = report["warnings"]
    assert f"No csrc/ in {place}/npu_ce_jit or beside it." in warning
    assert "PyInstaller: --collect-data npu_ce_jit" in warning
    assert "NPU_CE_JIT_PREBUILT_DIR" in warning
    built = _report(whole, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "prebuilt"))
    rebuilt = _report(whole, REBUILT, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "prebuilt"))
    assert rebuilt["library"] != built["library"]
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "NPU_CE_JIT_PREBUILT_DIR": str(tmp_path / "prebuilt")}
    served = _report(place, before, **variables)
    assert (served["library"], served["warnings"]) == (built["library"], []), "and not what was built with a macro"


def test_a_prebuilt_cache_of_another_compiler_does_not_serve_without_sources_either(tmp_path):
    whole, bare = copy_package(tmp_path / "whole", BODY), tmp_path / "bare"
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("csrc"))
    _report(whole, NPU_CE_JIT_CACHE_DIR=str(tmp_path / "prebuilt"), NPU_CE_JIT_CPU_ISA="baseline")
    variables = {"NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "NPU_CE_JIT_PREBUILT_DIR": str(tmp_path / "prebuilt")}
    assert _report(bare, CXX="g++ -pipe", NPU_CE_JIT_CPU_ISA="baseline", **variables)["backend"] == "reference"
    assert _report(bare, NPU_CE_JIT_CPU_ISA="baseline", **variables)["backend"] == "cpp"


def test_a_frozen_application_is_not_started_again_to_try_a_library(monkeypatch):
    assert open_words()[0] == sys.executable
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ToolchainError, match=r"build --into DIR.*NPU_CE_JIT_PREBUILT_DIR=DIR"):
        open_words()
