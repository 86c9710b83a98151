# SPDX-License-Identifier: Apache-2.0
"""The command line in a process of its own, on machines without PATH, home, compiler or CANN."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_package import copy_package, needs_compiler

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return copy_package(tmp_path_factory.mktemp("site"))


def _run(site: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-m", "npu_ce_jit", *words]
    return subprocess.run(
        command,
        env=environment | variables,
        cwd=site,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """An empty PATH and a home that cannot be written; only TMPDIR exists."""
    return {"PATH": "", "HOME": "/proc/self/nothing", "TMPDIR": str(tmp_path)}


def test_every_command_runs_where_there_is_nothing(site, bare, tmp_path):
    archive = str(tmp_path / "cache.tar.gz")
    for words, code, said in (
        (["info"], 0, "CPU  lazy"),
        (["verify"], 0, "0 entries, 0 bad"),
        (["clean"], 0, "0 removed"),
        (["clean", "--all", "--dry-run"], 0, "0 would go"),
        (["build"], 1, "CPU kernels: No C++ compiler"),
        (["pack", archive], 1, "nothing to pack"),
        (["unpack", archive], 1, "No such file"),
        (["doctor"], 1, "No C++ compiler"),
    ):
        done = _run(site, *words, **bare)
        assert done.returncode == code, (words, done)
        assert said in done.stdout + done.stderr, (words, done)
        assert "Traceback" not in done.stderr, (words, done)


@pytest.mark.exhaustive
def test_a_machine_without_a_compiler_gets_its_kernels_from_another(site, bare, tmp_path):
    maker = {"PATH": os.environ["PATH"], "NPU_CE_JIT_CACHE_DIR": str(tmp_path / "maker"), "TMPDIR": str(tmp_path)}
    assert _run(site, "build", **maker).returncode == 0
    assert _run(site, "pack", str(tmp_path), **maker).returncode == 0
    (archive,) = tmp_path.glob("npu_ce_jit-*.tar.gz")
    done = _run(site, "unpack", str(archive), **bare)
    assert done.returncode == 0, done
    done = _run(site, "info", "--json", **bare)
    report = json.loads(done.stdout)
    assert report["cpu"]["state"] == "loaded"
    assert report["cpu"]["library"].startswith(str(tmp_path / f"npu_ce_jit-{os.getuid()}"))


def test_looking_after_the_cache_builds_nothing(site, tmp_path):
    variables = {"PATH": os.environ["PATH"], "NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    for words in (["info"], ["verify"], ["clean", "--all"]):
        assert _run(site, *words, **variables).returncode == 0
    assert not list(tmp_path.rglob("e-*"))


@pytest.mark.exhaustive
def test_under_never_a_command_uses_what_is_built_and_builds_nothing(site, tmp_path):
    started = tmp_path / "started"
    compiler = tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\ntouch {started}\nexec {shutil.which("g++")} "$@"\n', "utf-8")
    compiler.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    variables = {"PATH": path, "NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    for words in (["info", "--json"], ["doctor", "--json"]):
        report = json.loads(_run(site, *words, NPU_CE_JIT_BUILD="never", **variables).stdout)
        assert report["cpu"]["state"] == "none"
        assert report["backend"] == "reference"
    assert not started.exists()
    assert not list(tmp_path.rglob("*.so"))
    assert _run(site, "build", **variables).returncode == 0
    started.unlink()
    (library,) = tmp_path.rglob("*.so")
    for words in (["info", "--json"], ["doctor", "--json"]):
        report = json.loads(_run(site, *words, NPU_CE_JIT_BUILD="never", **variables).stdout)
        assert report["cpu"]["state"] == "loaded"
        assert report["cpu"]["library"] == str(library)
    assert (
        "healthy (exit code 0): the CPU kernels work"
        in _run(site, "doctor", NPU_CE_JIT_BUILD="never", **variables).stdout
    )
    assert not started.exists()


@pytest.mark.parametrize(
    "words",
    [["frobnicate"], ["clean", "--older-than", "soon"], ["clean", "--all", "--broken"], ["pack"], ["verify", "x"]],
)
def test_what_is_no_command_line_exits_with_2(site, bare, words):
    done = _run(site, *words, **bare)
    assert done.returncode == 2
    assert "usage: " in done.stderr


def test_damage_is_found_told_and_cleaned(site, tmp_path):
    variables = {"PATH": os.environ["PATH"], "NPU_CE_JIT_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    assert _run(site, "build", **variables).returncode == 0
    (library,) = (tmp_path / "cache").rglob("*.so")
    os.truncate(library, 100)
    done = _run(site, "verify", **variables)
    assert done.returncode == 1
    assert str(library.parent) in done.stdout
    done = _run(site, "clean", "--broken", **variables)
    assert done.returncode == 0
    assert not library.parent.exists()
    assert _run(site, "verify", **variables).returncode == 0


def test_a_build_that_fails_exits_with_1_and_the_compilers_words(tmp_path):
    site = copy_package(tmp_path / "site", "int broken(\n")
    done = _run(site, "build", PATH=os.environ["PATH"], NPU_CE_JIT_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "toy.cpp:1" in done.stdout
