# SPDX-License-Identifier: Apache-2.0
"""Machines whose bisheng is a shell script, which fails in the way that a test needs."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from npu_ce_jit.jit.bisheng import probe_kernels
from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS, Compiler
from npu_ce_jit.jit.build.cpu_recipe import Recipe
from npu_ce_jit.jit.build.npu_recipe import npu_recipes
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain.compiler_output import BUILD_LOG, Failure
from npu_ce_jit.jit.toolchain.discovery import Toolchain
from npu_ce_jit.settings import Settings

MACHINE = platform.machine()
NAMES = [flag_set.name for flag_set in FLAG_SETS]
REFUSE = "echo \"clang: error: unknown argument: '$1'\" >&2; exit 1"
# Shell patterns that tell each flag set's command line from the others'; the most specific come first.
_CASES = {
    "cce-two-steps": "*' -c '*|*--cce-fatobj-link*",
    "cce-one-unit": "*-xcce*' -include '*",
    "cce-npu-arch": "*-xcce*--npu-arch=*",
    "asc-dirs": "*' -x asc '*-lruntime*",
    "asc": "*' -x asc '*",
    "cce-soc": "*--cce-soc-version=*",
    "cce-vec": "*--cce-aicore-arch=dav-c220-vec*",
}
assert sorted(_CASES) == sorted(NAMES)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A correct library of the probe's kernels, and several defective ones."""
    directory = tmp_path_factory.mktemp("libraries")
    both = "".join(f'extern "C" void {name}() {{}}\n' for name in probe_kernels.LAUNCHERS)
    bodies = {
        "good": both,
        "one": both.splitlines()[0],
        "nameless": both.replace('extern "C" ', ""),
        "undefined": f'{both}extern "C" void nowhere(); extern "C" void calls() {{ nowhere(); }}',
        "fatal": f"#include <csignal>\nstatic int x = raise(SIGSEGV); {both}",
    }
    for name, body in bodies.items():
        (directory / f"{name}.cpp").write_text(body, "utf-8")
        words = ["g++", "-shared", "-fPIC", f"{name}.cpp", "-o", f"{name}.so"]
        subprocess.run(words, cwd=directory, check=True)
    (directory / "garbage.so").write_text("no library", "utf-8")
    return {name: directory / f"{name}.so" for name in (*bodies, "garbage")}


def make(library: Path) -> str:
    """Shell lines that copy this library to the output."""
    return f'while [ "$1" != -o ]; do shift; done; cp {shlex.quote(str(library))} "$2"'


class Machine(NamedTuple):
    """A machine with an NPU's software, and a script as its bisheng."""

    compiler: Compiler
    directory: Path
    root: Path

    def recipes(self, **rejected: str):
        known = Toolchain(Settings())
        values = {
            "bisheng": self.compiler.program,
            "cann_home": self.compiler.home,
            "cxx": "g++",
            "torch_npu_dir": "/t",
        }
        facts = {name: getattr(known, name)._replace(value=value) for name, value in values.items()}
        settings = Settings.from_env({"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": "/users/own"})
        sources = Sources(self.root, ("ascendc/a.asc", "ascendc/b.asc", "csrc/npu/n.cpp"), ("ONE=1",))
        verdicts = [({"bisheng_flags": name.replace("_", "-")}, verdict) for name, verdict in rejected.items()]
        return npu_recipes(settings, known.replace(**facts), sources, self.directory, "0123456789ab", verdicts)

    def first(self, **rejected: str) -> Recipe:
        return next(self.recipes(**rejected))

    @property
    def log(self) -> str:
        return (self.directory / BUILD_LOG).read_text("utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    """Makes a CANN whose compiler runs the given shell lines for each flag set, and `otherwise` for the rest."""

    def machine_of(otherwise: str = REFUSE, **flag_sets: str) -> Machine:
        home = tmp_path / "CANN 9 $x"
        bisheng = home / f"{MACHINE}-linux/ccec_compiler/bin/bisheng"
        bisheng.parent.mkdir(parents=True)
        (home / "compiler/tikcpp/tikcfw/impl").mkdir(parents=True)
        (home / "compiler/tikcpp/tikcfw/kernel_operator.h").touch()
        cases = "".join(
            f"{pattern}) {flag_sets.get(name.replace('-', '_'), otherwise)};;\n" for name, pattern in _CASES.items()
        )
        bisheng.write_text(f'#!/bin/sh\ncase " $* " in\n{cases}esac\n', "utf-8")
        bisheng.chmod(0o755)
        work = tmp_path / "work"
        work.mkdir()
        return Machine(Compiler(str(bisheng), str(home), MACHINE), work, tmp_path / "sources")

    return machine_of


def refusal(recipe: Recipe, *lines: str, output: str = "") -> Failure:
    """The failure that ninja reports for the step that makes `output`, by default the one that links the kernels."""
    return Failure(
        (output or recipe.libraries[1],), f"bisheng for {recipe.facts['bisheng_flags']}", lines or ("ld.lld: error: x",)
    )
