# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from toy_package import needs_compiler, toy

from npu_ce_jit.errors import BuildError, ToolchainError
from npu_ce_jit.jit import flags
from npu_ce_jit.jit.ninja_file import ninja_file
from npu_ce_jit.jit.recipe import cpu_recipe
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain import discover
from npu_ce_jit.settings import Settings

SOURCES = Sources(
    Path("/src"),
    (("csrc/cpu/a.cpp", ""), ("csrc/cpu/a.h", ""), ("csrc/r.cpp", "")),
)


def _text(sources: Sources = SOURCES, cpu_isa: str = "avx2") -> str:
    known = discover(Settings())
    toolchain = known._replace(
        cpu_isa=known.cpu_isa._replace(value=cpu_isa), cxx=known.cxx._replace(value="/usr/bin/g++")
    )
    return ninja_file(cpu_recipe(toolchain, sources), sources.root_dir, [flags.CPU_LIBRARY])


def test_each_unit_of_the_cpu_library_becomes_one_object():
    lines = _text().splitlines()
    assert [line for line in lines if line.startswith("build ")] == [
        "build csrc/cpu/a.o: compile $root/csrc/cpu/a.cpp",
        "build csrc/r.o: compile $root/csrc/r.cpp",
        "build libnpu_ce_jit_cpu.so: link csrc/cpu/a.o csrc/r.o",
    ]
    after = dict(itertools.pairwise(lines))
    assert after["build csrc/cpu/a.o: compile $root/csrc/cpu/a.cpp"] == "  isa = -mavx2 -mfma -mf16c"
    assert "isa" not in after["build csrc/r.o: compile $root/csrc/r.cpp"]
    torch_dir = Path(torch.__file__).parent
    assert f"-I/src/csrc -isystem {torch_dir}/include" in _text()
    assert f"-L{torch_dir}/lib" in _text()


@pytest.mark.parametrize(
    ("cpu_isa", "present", "absent"),
    [
        ("avx512", " -mavx512vl", " -march"),
        ("avx2", " -mfma", " -mavx512"),
        ("neon", "", " -m"),
        ("baseline", "", " -m"),
    ],
)
def test_flags_follow_the_instructions(cpu_isa, present, absent):
    assert present in _text(cpu_isa=cpu_isa)
    assert absent not in _text(cpu_isa=cpu_isa)


def test_the_text_is_the_same_each_time():
    assert _text() == _text()


def test_a_newline_in_a_path_is_refused_in_words():
    with pytest.raises(BuildError, match="newline"):
        _text(SOURCES._replace(root_dir=Path("/a\nb")))


def test_without_the_ninja_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ninja.ninja_syntax", None)
    with pytest.raises(ToolchainError, match="pip install ninja"):
        _text()


@needs_compiler
@pytest.mark.parametrize(
    "name", ["a  b", "c$d", "e$ f$$", "it's", 'a"b', "ü-名", "x:y", "(a;b)&c", "`id`$(id)", "%f#!"]
)
def test_a_build_works_below_an_awkward_path(tmp_path, name):
    one = toy(tmp_path / name)
    assert one.build().library.is_file()
