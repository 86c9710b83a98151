# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest
import torch
from toy_package import needs_compiler, toy

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.bisheng.attempts import Attempt
from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS
from npu_ce_jit.jit.bisheng.probe import Probe
from npu_ce_jit.jit.build.cpu_recipe import cpu_recipe
from npu_ce_jit.jit.build.ninja_file import ninja_file
from npu_ce_jit.jit.build.npu_recipe import npu_recipes
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings

SOURCES = Sources(
    Path("/src"),
    ("csrc/cpu/kernels/a.cpp", "csrc/cpu/kernels/a.h", "csrc/r.cpp"),
)


def _text(sources: Sources = SOURCES, cpu_isa: str = "avx2") -> str:
    known = Toolchain(Settings())
    toolchain = known.replace(
        cpu_isa=known.cpu_isa._replace(value=cpu_isa), cxx=known.cxx._replace(value="/usr/bin/g++")
    )
    return ninja_file(cpu_recipe(toolchain, sources), sources.root_dir)


def test_each_unit_of_the_cpu_library_becomes_one_object():
    lines = _text().splitlines()
    assert [line for line in lines if line.startswith("build ")] == [
        "build csrc/cpu/kernels/a.o: compile $root/csrc/cpu/kernels/a.cpp",
        "build csrc/r.o: compile $root/csrc/r.cpp",
        "build libnpu_ce_jit_cpu.so: link csrc/cpu/kernels/a.o csrc/r.o",
    ]
    after = dict(itertools.pairwise(lines))
    assert after["build csrc/cpu/kernels/a.o: compile $root/csrc/cpu/kernels/a.cpp"] == "  isa = -mavx2 -mfma -mf16c"
    assert "isa" not in after["build csrc/r.o: compile $root/csrc/r.cpp"]
    torch_dir = Path(torch.__file__).parent
    assert f"-I/src/csrc -isystem {torch_dir}/include" in _text()
    assert f"-L{torch_dir}/lib" in _text()


def _npu_recipe(tmp_path, monkeypatch, flag_set):
    """The recipe of a build whose probe accepts this set of flags first."""
    takes = lambda self, tried: iter([Attempt(tried, output="" if tried is flag_set else "error: no")])  # noqa: E731
    monkeypatch.setattr(Probe, "attempts", takes)
    sources = Sources(Path("/src"), ("ascendc/a.asc", "ascendc/b.asc", "csrc/npu/n.cpp"))
    known = Toolchain(Settings())
    values = {"bisheng": "/cann 9/bin/bisheng", "cann_home": "/cann 9", "torch_npu_dir": "/torch_npu", "cxx": "g++"}
    toolchain = known.replace(**{name: getattr(known, name)._replace(value=value) for name, value in values.items()})
    return next(npu_recipes(Settings(path="/bin"), toolchain, sources, tmp_path, "0123456789ab"))


def _builds(lines):
    return [line for line in lines if line.startswith("build ")]


def test_the_npu_libraries_are_bishengs_and_the_compilers_in_this_order(tmp_path, monkeypatch):
    recipe = _npu_recipe(tmp_path, monkeypatch, FLAG_SETS[0])
    lines = ninja_file(recipe, Path("/src")).splitlines()
    kernels = "libnpu_ce_kernels-asc-0123456789ab.so"
    assert _builds(lines) == [
        f"build {kernels}: bisheng_library $root/ascendc/a.asc $root/ascendc/b.asc",
        "build csrc/npu/n.o: compile $root/csrc/npu/n.cpp",
        f"build libnpu_ce_jit_npu.so: link csrc/npu/n.o | {kernels}",
    ]
    assert recipe.libraries == ("libnpu_ce_jit_npu.so", kernels)
    assert f"  words = '/cann 9/bin/bisheng' {' '.join(FLAG_SETS[0].flags)} -shared" in "\n".join(lines)
    variables = dict(line.split(" = ", 1) for line in lines if " = " in line and not line.startswith(" "))
    assert "-isystem /torch_npu/include -isystem /torch_npu/include/third_party/acl/inc" in variables["cflags"]
    assert "'-Wl,-rpath,$$ORIGIN'" in variables["ldflags"]
    assert "-L. -L/torch_npu/lib" in variables["ldflags"]
    assert "-lnpu_ce_kernels-asc-0123456789ab" in variables["libs"]
    assert recipe.environment["PATH"] == "/cann 9/bin:/bin"
    assert recipe.facts["bisheng_flags"] == FLAG_SETS[0].name
    assert recipe.compiles == 2


def test_in_two_steps_the_units_are_compiled_side_by_side(tmp_path, monkeypatch):
    (flag_set,) = (flag_set for flag_set in FLAG_SETS if flag_set.form == "two steps")
    recipe = _npu_recipe(tmp_path, monkeypatch, flag_set)
    kernels = f"libnpu_ce_kernels-{flag_set.name}-0123456789ab.so"
    assert _builds(ninja_file(recipe, Path("/src")).splitlines()) == [
        "build ascendc/a.asc.o: bisheng $root/ascendc/a.asc",
        "build ascendc/b.asc.o: bisheng $root/ascendc/b.asc",
        f"build {kernels}: bisheng_library ascendc/a.asc.o ascendc/b.asc.o",
        "build csrc/npu/n.o: compile $root/csrc/npu/n.cpp",
        f"build libnpu_ce_jit_npu.so: link csrc/npu/n.o | {kernels}",
    ]
    assert recipe.compiles == 3


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
        _text(Sources(Path("/a\nb"), SOURCES.names))


@needs_compiler
def test_a_ninja_on_path_serves_without_the_python_package(tmp_path, monkeypatch):
    ninja = toy(tmp_path).toolchain.ninja.require()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ninja").symlink_to(ninja)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for name in ("ninja", "ninja.ninja_syntax"):
        monkeypatch.setitem(sys.modules, name, None)
    one = toy(tmp_path, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert one.toolchain.ninja.where == "PATH"
    assert one.build().library.is_file()


@needs_compiler
@pytest.mark.parametrize(
    "name", ["a  b", "c$d", "e$ f$$", "it's", 'a"b', "ü-名", "x:y", "(a;b)&c", "`id`$(id)", "%f#!"]
)
def test_a_build_works_below_an_awkward_path(tmp_path, name):
    one = toy(tmp_path / name)
    assert one.build().library.is_file()
