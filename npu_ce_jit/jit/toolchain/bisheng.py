# SPDX-License-Identifier: Apache-2.0
"""Where CANN's compiler is, from files alone."""

import os
import platform
import shutil
from pathlib import Path

from npu_ce_jit.jit.toolchain.cann import find_cann_version
from npu_ce_jit.jit.toolchain.finding import Finding
from npu_ce_jit.settings import Settings

# Below CANN's home: 9.x first, then 8.x, then what both have as links.
_PLACES = (
    "{machine}-linux/ccec_compiler/bin",
    "compiler/ccec_compiler/bin",
    "tools/ccec_compiler/bin",
    "tools/bisheng_compiler/bin",
    "bin",
)
_TOOLKIT = "Install CANN's toolkit package (the runtime packages have no compiler), or set NPU_CE_JIT_BISHENG."


def find_bisheng(settings: Settings, cann_home: Finding) -> Finding:
    """NPU_CE_JIT_BISHENG where it is set, else the one on PATH, else CANN's own."""
    if settings.bisheng is not None:
        fault = _fault(settings.bisheng)
        if fault is None:
            return Finding("bisheng", str(settings.bisheng), "NPU_CE_JIT_BISHENG")
        return Finding(
            "bisheng", None, f"NPU_CE_JIT_BISHENG: {settings.bisheng} {fault}",
            "Set NPU_CE_JIT_BISHENG to CANN's compiler, or unset it.",
        )  # fmt: skip
    program = shutil.which("bisheng", path=settings.path) if settings.path else None
    if program is not None:
        stranger = cann_home.value is not None and not is_inside(program, cann_home.value)
        return Finding("bisheng", program, f"PATH, but it is not in {cann_home.value}" if stranger else "PATH")
    if cann_home.value is None:
        return Finding("bisheng", None, f"not on PATH, and no CANN: {cann_home.where}", cann_home.hint)
    faults = []
    for place in _PLACES:
        file = Path(cann_home.value, place.format(machine=platform.machine()), "bisheng")
        if os.path.lexists(file):
            fault = _fault(file)
            if fault is None:
                return Finding("bisheng", str(file), "CANN's home")
            faults.append(f"{file} {fault}")
    why = "; ".join(faults) or f"neither on PATH nor in {cann_home.value}"
    return Finding("bisheng", None, why, _TOOLKIT)


def find_lld(settings: Settings, bisheng: Finding) -> Finding:
    """The linker that bisheng starts for device code: it lies beside it."""
    if bisheng.value is None:
        return Finding(
            "ld.lld", None, f"bisheng has it beside itself, and there is none: {bisheng.where}", bisheng.hint
        )
    places = {"beside bisheng": str(Path(bisheng.value).parent), "PATH": settings.path}
    places["beside what bisheng is a link to"] = os.path.dirname(os.path.realpath(bisheng.value))
    for where, place in places.items():
        program = shutil.which("ld.lld", path=place) if place else None
        if program is not None:
            return Finding("ld.lld", program, where)
    return Finding(
        "ld.lld", None, f"neither beside {bisheng.value} nor on PATH", "Install CANN's toolkit package again."
    )


def bisheng_identity(bisheng: Finding, cann_home: Finding) -> str:
    """The compiler's part of the cache key: its size and its own CANN's version, unless it is inside `cann_home`.

    Path and modification time are left out: they differ between copies of the same compiler.
    """
    if bisheng.value is None or (cann_home.value is not None and is_inside(bisheng.value, cann_home.value)):
        return "of CANN"
    size = os.path.getsize(bisheng.value)
    for home in Path(os.path.realpath(bisheng.value)).parents:
        version, build = find_cann_version(Finding("CANN", str(home), ""))
        if version.value is not None:
            return f"of CANN {version.value} build {build.value}, {size} bytes"
    return f"{size} bytes"


def is_inside(program: str, home: str) -> bool:
    """Whether the program belongs to this CANN, whatever links lead there."""
    return program.startswith(f"{home}{os.sep}") or os.path.realpath(program).startswith(
        f"{os.path.realpath(home)}{os.sep}"
    )


def _fault(program: Path) -> str | None:
    if not os.path.exists(program):
        return f"is a link to {os.readlink(program)}, which is not there" if os.path.islink(program) else "is not there"
    if not os.path.isfile(program):
        return "is no file"
    return None if os.access(program, os.X_OK) else f"may not be run (chmod +x {program})"
