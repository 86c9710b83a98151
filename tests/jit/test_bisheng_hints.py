# SPDX-License-Identifier: Apache-2.0
"""The hints for each way in which bisheng fails. Where g++'s headers are not found, a build adds them itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from bisheng_scripts import MACHINE, libraries, machine, make
from toy_package import needs_compiler

from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.bisheng import hints
from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS, Compiler

pytestmark = needs_compiler


NO_CSTDINT = "echo \"kernel_macros.h:24: fatal error: 'cstdint' file not found\"; exit 1"


def test_a_missing_cstdint_is_tried_again_with_the_root_of_gcc(machine, libraries):
    good = make(libraries["good"])
    lines = f'case "$*" in *--gcc-toolchain=*) {good};; *) {NO_CSTDINT};; esac'
    recipe = machine(asc=lines).first()
    libgcc = subprocess.run(["g++", "-print-file-name=libgcc.a"], capture_output=True, text=True).stdout
    assert f"--gcc-toolchain={libgcc.split('/lib/gcc/')[0]}" in recipe.steps[0].words["words"]
    assert len(recipe.facts["bisheng_flags_tried"]) == 2


def test_then_with_the_directories_that_gcc_itself_reads(machine, libraries):
    good = make(libraries["good"])
    lines = f'case "$*" in *-isystem*) {good};; *) {NO_CSTDINT};; esac'
    recipe = machine(asc=lines).first()
    assert len(recipe.facts["bisheng_flags_tried"]) == 3
    words: Sequence[str] = recipe.steps[0].words["words"]
    dirs = [Path(word.removeprefix("-isystem")) for word in words if word.startswith("-isystem")]
    assert any((path / "cstdint").is_file() for path in dirs)


def test_then_the_package_to_install_is_named(machine):
    with pytest.raises(BuildError) as caught:
        machine(otherwise=NO_CSTDINT).first()
    (line,) = caught.value.first_lines
    assert line.count("--gcc-toolchain=") == len(FLAG_SETS)
    assert "install" in caught.value.hint
    assert "apt-get install" in caught.value.hint
    assert "g++" in caught.value.hint or "libstdc++-" in caught.value.hint


def test_without_a_gcc_there_is_nothing_to_try_again(machine):
    assert list(hints.gcc_flags(["/no/such/g++"], os.environ)) == []


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("x.asc:1: fatal error: 'kernel_operator.h' file not found", "set ASCEND_HOME_PATH"),
        ('bisheng: error: unable to execute command: Executable "ld.lld" doesn\'t exist!', "beside {bisheng}"),
        ("libascend_hal.so: cannot open shared object file: No such file or directory", "driver"),
        ("bisheng: error while loading shared libraries: libLLVM-15.so: cannot open", "set_env.sh"),
        ("error: [Errno 8] Exec format error: 'bisheng'", "CANN for {machine}"),
        ("error: [Errno 13] Permission denied: 'bisheng'", "chmod +x {bisheng}"),
        ("bisheng: error: unable to execute command: Killed", "MAX_JOBS=1"),
        ("error: something new", "NPU_CE_JIT_BISHENG"),
    ],
)
def test_each_known_failure_has_its_cure(machine, output, hint):
    compiler = machine().compiler
    assert hint.format(bisheng=compiler.program, machine=MACHINE) in hints.of(output, compiler)


def test_a_cann_without_ascend_cs_headers_is_told_whatever_the_compiler_says(tmp_path):
    compiler = Compiler("bisheng", str(tmp_path), MACHINE)
    assert "install CANN's toolkit" in hints.of("error: something new", compiler)
