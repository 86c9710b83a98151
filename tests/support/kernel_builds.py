# SPDX-License-Identifier: Apache-2.0
"""Compiles the torch-free kernels for each instruction set, and finds how to run them here."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain import flags

HERE = Path(__file__).parent
CSRC_DIR = Sources.installed().root_dir / "csrc"
# The real build's flags, with every warning an error.
FLAGS = [*flags.COMPILE, "-Wextra", "-Werror", "-pthread"]


@dataclass(frozen=True)
class Isa:
    """An instruction set: its compilers, its flags, and the emulators that can run it."""

    name: str
    compilers: tuple[str, ...]
    flags: tuple[str, ...] = ()
    emulators: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


NATIVE = ("c++", "g++", "clang++")
BASELINE = Isa("baseline", NATIVE)
AVX2 = Isa("avx2", NATIVE, flags.OF_ISA["avx2"])
ISAS = [
    BASELINE,
    AVX2,
    Isa("avx512", NATIVE, flags.OF_ISA["avx512"]),
    # Static, so that the emulator needs no libraries of the other machine.
    Isa("aarch64", ("aarch64-linux-gnu-g++",), ("-static",), ("qemu-aarch64", "qemu-aarch64-static")),
]


def _first_found(names: tuple[str, ...]) -> str | None:
    return next((path for path in map(shutil.which, names) if path), None)


@cache
def why_it_cannot_compile(isa: Isa) -> str | None:
    compiler = _first_found(isa.compilers)
    if compiler is None:
        return f"none of {', '.join(isa.compilers)} is on PATH"
    probe = subprocess.run(
        [compiler, *isa.flags, "-x", "c++", "-fsyntax-only", "-"], input="", capture_output=True, text=True
    )
    return None if probe.returncode == 0 else f"{compiler} {' '.join(isa.flags)}: {probe.stderr.strip()}"


@cache
def why_it_cannot_run(isa: Isa) -> str | None:
    """None where this machine, or an emulator on it, has the instructions of the flags."""
    if reason := why_it_cannot_compile(isa):
        return reason
    if isa.emulators:
        return None if _first_found(isa.emulators) else f"none of {', '.join(isa.emulators)} is on PATH"
    wanted = {flag.removeprefix("-m") for flag in isa.flags}
    cpuinfo = Path("/proc/cpuinfo")
    if not wanted:
        return None
    missing = wanted - set(cpuinfo.read_text().split()) if cpuinfo.exists() else wanted
    return f"this CPU lacks {', '.join(sorted(missing))}" if missing else None


def compiler_of(isa: Isa) -> str:
    compiler = _first_found(isa.compilers)
    assert compiler is not None
    return compiler


@cache
def compiler_name(isa: Isa) -> str:
    """The common name with the major version: "g++ 12"."""
    macros = "__clang_major__ __GNUC__"
    command = [compiler_of(isa), "-E", "-P", "-x", "c++", "-"]
    clang, gnu = subprocess.run(command, input=macros, capture_output=True, text=True, check=True).stdout.split()
    return f"clang++ {clang}" if clang.isdigit() else f"g++ {gnu}"


def compile_driver(isa: Isa, build_dir: Path, more_flags: tuple[str, ...] = ()) -> list[str]:
    """Builds the driver with the kernels and returns the command that runs it."""
    compiler = compiler_of(isa)
    isa_flags = [*isa.flags, *more_flags]

    def compile_one(source: Path) -> Path:
        target = build_dir / f"{source.stem}.o"
        command = [compiler, *FLAGS, *isa_flags, f"-I{CSRC_DIR}", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return target

    sources = [HERE / "kernel_driver" / "driver.cpp", *sorted((CSRC_DIR / "cpu" / "kernels").glob("*.cpp"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    program = build_dir / "driver"
    subprocess.run([compiler, "-pthread", *isa_flags, "-o", program, *objects], check=True)
    emulator = _first_found(isa.emulators)
    return [emulator, str(program)] if emulator else [str(program)]
