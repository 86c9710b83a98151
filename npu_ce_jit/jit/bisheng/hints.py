# SPDX-License-Identifier: Apache-2.0
"""Hints for the known failures of bisheng."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from npu_ce_jit.jit.bisheng.flag_sets import Compiler

MISSING_CXX_HEADER = re.compile(r"fatal error: '(?:c?std\w+|type_traits|utility|string|algorithm)' file not found")

_NO_HEADERS = "Ascend C's headers are not in {home}: install CANN's toolkit package there, or set ASCEND_HOME_PATH."
_NO_LINKER = "The device linker has to lie beside {bisheng} or on PATH: install CANN's toolkit package again."
_WRONG = (
    "Call .cpu() on the tensors, and report this with the output of `python -m npu_ce_jit doctor`. "
    "To have these flags tried again, run `python -m npu_ce_jit clean --rejected`."
)
# (pattern of the output, hint), the most specific first.
_HINTS = (
    ("self-check", _WRONG),
    (MISSING_CXX_HEADER.pattern, "bisheng takes the newest GCC here, and that one has no C++ headers: {cxx}."),
    (r"kernel_operator\.h'? file not found|kernel_operator\.h: No such file", _NO_HEADERS),
    (r"ld\.lld|llvm-objcopy", _NO_LINKER),
    (r"file too short|invalid ELF header", "A library of CANN is damaged: install CANN's toolkit package again."),
    (r"libascend_hal|libdrvdsmi", "Install the NPU's driver; in a container, mount /usr/local/Ascend/driver."),
    (
        r"error while loading shared libraries|cannot open shared object file",
        "A library of CANN is not found: run `source {home}/set_env.sh`, or install CANN's toolkit package again.",
    ),
    (r"Exec format error|cannot execute binary file", "Install CANN for {machine}: {bisheng} is for another machine."),
    (r"Permission denied", "Run: chmod +x {bisheng}"),
    (r"Killed|Cannot allocate memory|out of memory", "Free memory, or set MAX_JOBS=1, and build again."),
    (r"timed out after", "Run the command above by hand: {bisheng} hangs."),
)
_OTHERWISE = "Run the command above by hand; set NPU_CE_JIT_BISHENG if CANN's compiler is another one."


def of(output: str, compiler: Compiler) -> str:
    """The hint for a failure with this output."""
    otherwise = _OTHERWISE if compiler.api_dirs() else _NO_HEADERS
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, output)), otherwise)
    program, home, machine = compiler
    return hint.format(bisheng=program, home=home, machine=machine, cxx=_cxx_package())


def gcc_flags(cxx: Sequence[str], environment: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Flags, to be tried in turn, that have clang use the GCC of this machine's C++ compiler."""
    found = _first_line([*cxx, "-print-file-name=libgcc.a"], environment)
    prefix, lib, rest = found.partition("/lib/gcc/")
    if lib and prefix:
        yield (f"--gcc-toolchain={prefix}",)
    # clang 15 takes the newest GCC below that prefix: where there are several, it needs the directories themselves.
    listing = _output([*cxx, "-E", "-x", "c++", "-v", "/dev/null"], environment)
    dirs = re.findall(r"^ (/\S*c\+\+\S*)$", listing, re.MULTILINE)
    if dirs:
        libgcc = [f"-L{Path(found).parent}"] if rest else []
        yield (*(f"-isystem{path}" for path in dirs), *libgcc)


def _cxx_package() -> str:
    """How to install the missing headers, by the version of the newest GCC."""
    versions = [int(path.name) for path in Path("/usr/lib/gcc").glob("*/*") if path.name.isdigit()]
    newest = max(versions, default=None)
    if newest is None:
        return "install one with its C++ library (Debian, Ubuntu: apt-get install g++; openEuler: dnf install gcc-c++)"
    return f"install them (Debian, Ubuntu: apt-get install libstdc++-{newest}-dev; openEuler: dnf install gcc-c++)"


def _first_line(words: Sequence[str], environment: Mapping[str, str]) -> str:
    return _output(words, environment).partition("\n")[0].strip()


def _output(words: Sequence[str], environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603  no shell; the compiler is where Toolchain found it
            words, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=30.0, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")
