# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
from toy_package import write_sources

from npu_ce_jit._version import __version__
from npu_ce_jit.jit import cache_key as cache_key_module
from npu_ce_jit.jit import flags
from npu_ce_jit.jit.cache_key import cache_key
from npu_ce_jit.jit.evidence import Evidence
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain import Toolchain
from npu_ce_jit.settings import Settings

SETTINGS = Settings()
TOOLCHAIN = Toolchain(
    system=Evidence("system", "Linux", ""),
    machine=Evidence("machine", "x86_64", ""),
    cpu_isa=Evidence("CPU instructions", "avx2", ""),
    cxx=Evidence("C++ compiler", "/usr/bin/g++", ""),
    ninja=Evidence("ninja", "/usr/bin/ninja", ""),
    torch_version=Evidence("torch", "2.13.0+cpu", ""),
    torch_git=Evidence("torch git", "cf30153", ""),
    torch_dir=Evidence("torch directory", "/site/torch", ""),
    torch_npu_version=Evidence("torch_npu", None, ""),
    torch_npu_dir=Evidence("torch_npu directory", None, ""),
    cann_home=Evidence("CANN", None, ""),
    cann_version=Evidence("CANN version", None, ""),
    cann_build=Evidence("CANN build", None, ""),
    npu_architecture=Evidence("NPU architecture", None, ""),
    bisheng=Evidence("bisheng", None, ""),
    lld=Evidence("ld.lld", None, ""),
)
SOURCES = Sources(Path("/src"), (("csrc/cpu/a.cpp", "11"), ("csrc/cpu/a.h", "22")))
KEY = cache_key(SETTINGS, TOOLCHAIN, SOURCES)


def _with(**values: str) -> Toolchain:
    return TOOLCHAIN._replace(
        **{name: getattr(TOOLCHAIN, name)._replace(value=value) for name, value in values.items()}
    )


def test_the_name_can_be_read():
    assert KEY.name == f"{__version__}-torch2.13.0+cpu-x86_64-avx2-{KEY.digest[:12]}"
    assert "-cann8.1.RC1-" in cache_key(SETTINGS, _with(cann_version="8.1.RC1"), SOURCES).name
    assert "/" not in cache_key(SETTINGS, _with(cann_version="../../x"), SOURCES).name


@pytest.mark.parametrize(
    "changed",
    [
        {"torch_version": "2.13.1+cpu"},
        {"torch_git": "0000000"},
        {"torch_npu_version": "2.13.0"},
        {"cann_version": "8.1.RC1"},
        {"npu_architecture": "dav-2201"},
        {"system": "Plan9"},
        {"machine": "aarch64"},
        {"cpu_isa": "avx512"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_fact_of_the_machine_that_changes_the_bytes_changes_the_key(changed):
    assert cache_key(SETTINGS, _with(**changed), SOURCES).digest != KEY.digest


@pytest.mark.parametrize(
    "files",
    [
        (("csrc/cpu/a.cpp", "11"), ("csrc/cpu/a.h", "33")),
        (("csrc/cpu/a.cpp", "11"), ("csrc/cpu/b.h", "22")),
        (("csrc/cpu/a.cpp", "11"),),
        (*SOURCES.files, ("ascendc/k.h", "44")),
    ],
)
def test_every_source_and_header_changes_the_key(files):
    assert cache_key(SETTINGS, TOOLCHAIN, SOURCES._replace(files=files)).digest != KEY.digest


def test_cxx_changes_the_key_only_where_the_user_set_it():
    assert cache_key(Settings(cxx="clang++"), TOOLCHAIN, SOURCES).digest != KEY.digest
    assert cache_key(SETTINGS, _with(cxx="/usr/bin/clang++"), SOURCES) == KEY


def test_flags_and_version_change_the_key(monkeypatch):
    monkeypatch.setattr(flags, "LIBRARIES", ("-lelse",))
    assert cache_key(SETTINGS, TOOLCHAIN, SOURCES).digest != KEY.digest
    monkeypatch.undo()
    monkeypatch.setattr(flags, "COMPILE", ("-O0",))
    assert cache_key(SETTINGS, TOOLCHAIN, SOURCES).digest != KEY.digest
    monkeypatch.undo()
    monkeypatch.setitem(flags.OF_ISA, "avx2", ("-mavx",))
    assert cache_key(SETTINGS, TOOLCHAIN, SOURCES).digest != KEY.digest
    monkeypatch.undo()
    monkeypatch.setattr(cache_key_module, "__version__", "9.9")
    assert cache_key(SETTINGS, TOOLCHAIN, SOURCES).digest != KEY.digest


def test_paths_and_settings_that_change_no_byte_change_nothing():
    moved = _with(ninja="/opt/ninja", torch_dir="/venv/torch", cann_home="/opt/cann", cxx="/opt/g++")
    other = Settings(
        build="lazy", cache_dir=Path("/c"), lock_timeout=1.0, log_level=10, huge_pages=False, max_jobs=1,
        home=Path("/h"), path="/p", environment={"A": "b"},
    )  # fmt: skip
    assert cache_key(other, moved, SOURCES._replace(root_dir=Path("/elsewhere"))) == KEY


def test_same_bytes_with_a_new_time_are_the_same_sources_and_new_bytes_with_an_old_time_are_not(tmp_path):
    write_sources(tmp_path)
    before = Sources.of(tmp_path)
    header = tmp_path / "csrc" / "cpu" / "toy.h"
    status = header.stat()
    os.utime(header, (1, 1))
    assert Sources.of(tmp_path) == before
    header.write_text("#define TOY 43\n", "utf-8")
    os.utime(header, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Sources.of(tmp_path) != before


def test_a_machine_whose_instructions_are_not_known_has_no_key():
    with pytest.raises(Exception, match="No CPU instructions"):
        cache_key(SETTINGS, _with(cpu_isa=None), SOURCES)  # type: ignore[arg-type]
