# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import os
import time
from pathlib import Path

import pytest
from toy_package import compiler_script, needs_compiler, toy

from npu_ce_jit import bootstrap
from npu_ce_jit.errors import BuildError, LoadError, ToolchainError
from npu_ce_jit.jit.build import compile as build_module
from npu_ce_jit.jit.cache.key import cache_key
from npu_ce_jit.jit.loader import open_library
from npu_ce_jit.jit.toolchain.compiler_output import compiler_failure
from npu_ce_jit.jit.toolchain.finding import Finding

pytestmark = needs_compiler


def test_a_build_is_found_again_and_tells_what_it_was(tmp_path, caplog):
    caplog.set_level(logging.INFO, "npu_ce_jit")
    one = toy(tmp_path)
    artifact = one.build()
    assert one.find() == artifact
    assert ctypes.CDLL(str(artifact.library)).toy() == 42
    assert sorted(path.name for path in artifact.entry_dir.iterdir()) == [
        "build.log", "build.ninja", "libnpu_ce_jit_cpu.so", "manifest.json",
    ]  # fmt: skip
    manifest = artifact.manifest
    assert manifest["key"] == one.key.text
    assert manifest["compiler"]["command"] == one.toolchain.cxx.value
    assert any(character.isdigit() for character in manifest["compiler"]["version"])
    assert "-O2" in manifest["flags"]
    start, *_, end = caplog.messages
    assert "building the CPU kernels" in start
    assert str(one.key_dir) in start
    assert "built in" in end


def test_a_built_entry_is_not_built_again(tmp_path):
    one = toy(tmp_path)
    assert one.build() == one.build()


def test_a_source_that_does_not_compile_gives_the_compilers_words_the_command_and_the_log(tmp_path):
    one = toy(tmp_path, body="int toy() { return\n undeclared_name; }\n")
    with pytest.raises(BuildError) as caught:
        one.build()
    error = caught.value
    assert any("undeclared_name" in line for line in error.first_lines)
    assert "toy.cpp -o csrc/cpu/toy.o" in error.command
    assert "undeclared_name" in Path(error.log_path).read_text("utf-8")
    assert "doctor" in error.hint
    assert not list(one.key_dir.glob("[.e]*")), "nothing but the log is left"
    toy(tmp_path).build()  # mended, it builds


def test_a_symbol_that_nobody_defines_is_an_error_of_the_build(tmp_path):
    with pytest.raises(BuildError) as caught:
        toy(tmp_path, body="void nowhere(); void toy() { nowhere(); }\n").build()
    assert any("nowhere" in line for line in caught.value.first_lines)


def test_a_compiler_that_only_fails_is_told_too(tmp_path):
    one = toy(tmp_path, CXX=compiler_script(tmp_path, "echo licence expired; exit 3"))
    with pytest.raises(BuildError) as caught:
        one.build()
    assert caught.value.first_lines[0] == "licence expired"


def test_a_source_that_changes_under_the_compiler_is_not_published(tmp_path):
    header = tmp_path / "toy" / "csrc" / "cpu" / "toy.h"
    one = toy(tmp_path, CXX=compiler_script(tmp_path, f"echo '#define TOY 1' > {header}"))
    with pytest.raises(BuildError, match="changed while it was compiled"):
        one.build()
    assert one.find() is None


@pytest.mark.parametrize("fact", ["cxx", "ninja", "cpu_isa"])
def test_what_is_missing_is_named_before_anything_is_written(tmp_path, fact):
    one = toy(tmp_path)
    absent = getattr(one.toolchain, fact)._replace(value=None, hint="Install it.")
    with pytest.raises(ToolchainError, match=f"No {absent.name.replace('+', '.')}.*Install it"):
        one._replace(toolchain=one.toolchain.replace(**{fact: absent})).build()
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_an_error_that_names_the_place(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(build_module, "write_private", full)
    one = toy(tmp_path)
    with pytest.raises(BuildError, match="No space left"):
        one.build()
    assert list(one.key_dir.iterdir()) == []


def test_a_build_that_ends_without_a_word_goes_on_in_the_next_root(tmp_path):
    one = toy(tmp_path)
    # Since it could write its log, it does not take the disk for full.
    ninja = tmp_path / "ninja"
    fails_in_the_cache = f'case "$PWD" in {tmp_path}/cache/*) exit 1;; esac'
    ninja.write_text(f'#!/bin/sh\n{fails_in_the_cache}\nexec {one.toolchain.ninja.value} "$@"\n', "utf-8")
    ninja.chmod(0o755)
    artifact = one._replace(toolchain=one.toolchain.replace(ninja=Finding("ninja", str(ninja), "here"))).build()
    assert artifact.entry_dir.is_relative_to(one.store.roots[-1].path)
    assert list(one.key_dir.iterdir()) == []


def test_a_library_that_the_linker_refuses_is_a_load_error_with_its_words(tmp_path):
    one = toy(tmp_path)
    artifact = one.build()
    artifact.library.write_bytes(b"no library")
    with pytest.raises(LoadError, match=r"invalid ELF header|file too short"):
        open_library(artifact, {})


def test_the_library_is_told_which_outputs_use_huge_pages(tmp_path):
    artifact = toy(tmp_path).build()
    huge_pages = ctypes.c_int.in_dll(ctypes.CDLL(str(artifact.library)), "huge_pages")
    for switches, reported in (({}, -1), ({"npu_ce_jit_set_huge_pages": 192}, 192)):
        open_library(artifact, switches)
        assert huge_pages.value == reported


def test_the_failing_command_is_told_from_ninjas_output():
    log = "[1/3] compile a\nFAILED: [code=1] b.o \ng++ -c b.cpp\nb.cpp: note\n" + "b.cpp:1: error: x\n" * 30
    failure = compiler_failure(log)
    assert failure.command == "g++ -c b.cpp"
    assert failure.lines == ("b.cpp:1: error: x",) * 20
    assert failure.outputs == ("[code=1]", "b.o")
    assert compiler_failure("ninja: fatal: no\n") == ((), "", ("ninja: fatal: no",))


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (["python", "-m", "npu_ce_jit", "clean"], True),
        (["python", "-X", "dev", "-m", "npu_ce_jit"], True),
        (["python", "/env/bin/npu-ce-jit", "verify"], True),
        (["python", "-m", "pytest", "npu-ce-jit"], False),
        (["python", "train.py", "-m", "model"], False),
        (["python"], False),
        ([], False),
    ],
)
def test_a_command_line_is_told_from_a_program(words, is_one):
    assert bootstrap.is_command_line(words) is is_one


def test_a_clock_that_is_set_back_during_a_build_harms_nothing(tmp_path, monkeypatch):
    times = itertools.count(2e9, -86400.0)
    monkeypatch.setattr(time, "time", lambda: next(times))
    one = toy(tmp_path)
    artifact = one.build()
    assert 0 < artifact.manifest["seconds"] < 600
    assert one.find() == artifact


def test_ninja_is_told_how_many_compilers_may_run(tmp_path):
    one = toy(tmp_path, MAX_JOBS="1")
    ninja = tmp_path / "ninja"
    ninja.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/reported\nexec {one.toolchain.ninja.value} "$@"\n', "utf-8")
    ninja.chmod(0o755)
    found = one.toolchain.ninja._replace(value=str(ninja))
    artifact = one._replace(toolchain=one.toolchain.replace(ninja=found)).build()
    assert (tmp_path / "reported").read_text("utf-8").splitlines()[0] == "-j1"
    assert artifact.manifest["jobs"] == 1


def test_sources_with_a_new_time_are_found_and_new_bytes_with_the_old_time_are_not(tmp_path):
    one = toy(tmp_path)
    artifact = one.build()
    header = tmp_path / "toy/csrc/cpu/toy.h"
    os.utime(header, (1e9, 1e9))
    assert one._replace(key=cache_key(one.target)).find() == artifact
    status = header.stat()
    header.write_text("#define TOY 43\n", "utf-8")
    os.utime(header, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = one._replace(key=cache_key(one.target))
    assert changed.find() is None
    assert ctypes.CDLL(str(changed.build().library)).toy() == 43
