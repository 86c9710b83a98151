# SPDX-License-Identifier: Apache-2.0
"""What this machine has to build with and to build for. Reads files and PATH; starts no process."""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from npu_ce_jit.errors import ToolchainError
from npu_ce_jit.jit.bisheng import find_bisheng, find_lld
from npu_ce_jit.jit.cann import find_cann_home, find_cann_version
from npu_ce_jit.jit.evidence import Evidence
from npu_ce_jit.settings import Settings

_X86 = ("x86_64", "AMD64")
_ARM = ("aarch64", "arm64")
_ISA_OF_CAPABILITY = {"AVX512": "avx512", "AVX2": "avx2"}
_ISA_ORDER = ("baseline", "avx2", "avx512")


class Toolchain(NamedTuple):
    """The facts of a machine, each with its evidence.

    `cxx` may hold more than one word ("ccache g++"); `cxx_command` splits it.
    """

    system: Evidence
    machine: Evidence
    cpu_isa: Evidence
    cxx: Evidence
    ninja: Evidence
    torch_version: Evidence
    torch_git: Evidence
    torch_dir: Evidence
    torch_npu_version: Evidence
    torch_npu_dir: Evidence
    cann_home: Evidence
    cann_version: Evidence
    cann_build: Evidence
    npu_architecture: Evidence
    bisheng: Evidence
    lld: Evidence

    @property
    def cxx_command(self) -> list[str]:
        return shlex.split(self.cxx.require())

    @property
    def has_npu_software(self) -> bool:
        """Whether somebody set this machine up for an NPU."""
        return self.torch_npu_version.value is not None and self.cann_home.value is not None

    def require_build(self, needs: tuple[str, ...]) -> None:
        """Raises ToolchainError, with what to do, unless a build that needs these facts can be made here."""
        if self.system.value != "Linux":
            raise ToolchainError(
                f"The C++ kernels are built on Linux only; this is {self.system.value}.",
                "The reference implementation computes the same numbers, slower; NPU_CE_JIT_BUILD=never says "
                "that you know.",
            )
        for name in needs:
            getattr(self, name).require()


def discover(settings: Settings) -> Toolchain:
    """Looks for everything a build or a cache key may need. Never raises for what is absent."""
    cann_home = find_cann_home(settings)
    cann_version, cann_build = find_cann_version(cann_home)
    torch_npu_version, torch_npu_dir = _find_torch_npu()
    bisheng = find_bisheng(settings, cann_home)
    return Toolchain(
        system=Evidence("system", platform.system(), "the running kernel"),
        machine=Evidence("machine", platform.machine(), "the running kernel"),
        cpu_isa=_find_cpu_isa(settings),
        cxx=_find_cxx(settings),
        ninja=_find_ninja(settings),
        torch_version=Evidence("torch", str(torch.__version__), "torch.__version__"),
        torch_git=Evidence("torch git", str(torch.version.git_version), "torch.version.git_version"),
        torch_dir=Evidence("torch directory", str(Path(torch.__file__).parent), "torch.__file__"),
        torch_npu_version=torch_npu_version,
        torch_npu_dir=torch_npu_dir,
        cann_home=cann_home,
        cann_version=cann_version,
        cann_build=cann_build,
        npu_architecture=_npu_architecture(cann_home),
        bisheng=bisheng,
        lld=find_lld(settings, bisheng),
    )


def _npu_architecture(cann_home: Evidence) -> Evidence:
    """The family that the chips of a machine share, not the chip: asking for that would make a device context."""
    if cann_home.value is None:
        return Evidence("NPU architecture", None, cann_home.where, cann_home.cure)
    return Evidence("NPU architecture", "dav-2201", "Atlas A2 and A3, the only NPUs supported")


def _find_cpu_isa(settings: Settings) -> Evidence:
    machine, wanted = platform.machine(), settings.cpu_isa
    if machine in _ARM:
        best, where = "neon", f"every {machine} CPU has it"
        possible: tuple[str, ...] = ("baseline", "neon")
    elif machine in _X86:
        capability = torch.backends.cpu.get_cpu_capability()
        best, where = _ISA_OF_CAPABILITY.get(capability, "baseline"), f"torch calls this CPU {capability}"
        possible = _ISA_ORDER[: _ISA_ORDER.index(best) + 1]
    else:
        best, where, possible = "baseline", f"no vector code for {machine}", ("baseline",)
    if wanted is None:
        return Evidence("CPU instructions", best, where)
    if wanted in possible:
        return Evidence("CPU instructions", wanted, "NPU_CE_JIT_CPU_ISA")
    return Evidence(
        "CPU instructions", None, f"NPU_CE_JIT_CPU_ISA={wanted}, but this CPU can run {', '.join(possible)} ({where})",
        f"Set NPU_CE_JIT_CPU_ISA to one of {', '.join(possible)}, or unset it.",
    )  # fmt: skip


def _find_cxx(settings: Settings) -> Evidence:
    if settings.cxx:
        try:
            words = shlex.split(settings.cxx)
        except ValueError as error:
            words, why = [], f"CXX={settings.cxx!r} is not a command line ({error})"
        else:
            why = f"CXX={settings.cxx}, but no such program is on PATH"
        program = shutil.which(words[0], path=settings.path) if words else None
        if program is None:
            return Evidence(
                "C++ compiler", None, why, "Set CXX to a C++17 compiler, or unset it to use g++ or clang++."
            )
        return Evidence("C++ compiler", shlex.join([program, *words[1:]]), "CXX")
    for name in ("g++", "clang++", "c++"):
        program = shutil.which(name, path=settings.path)
        if program is not None:
            return Evidence("C++ compiler", shlex.quote(program), f"{name} on PATH")
    return Evidence(
        "C++ compiler", None, "CXX is not set and neither g++, clang++ nor c++ is on PATH",
        "Install one (Debian, Ubuntu: apt-get install g++; conda: conda install gxx), or set CXX.",
    )  # fmt: skip


def _find_ninja(settings: Settings) -> Evidence:
    """In this order: where the ninja wheel put it, beside the running Python, on PATH.

    A virtual environment that is used without being activated has ninja in its bin directory only.
    """
    places: list[tuple[str, str]] = []
    package_dir = _package_dir("ninja")
    if package_dir is not None:
        site_dir = package_dir.parent
        # <prefix>/lib/python3.x/site-packages, or what `pip install --target` makes
        places += [(str(place / "bin"), "the ninja package") for place in (*site_dir.parents[2:3], site_dir)]
    if sys.executable:
        places.append((os.path.dirname(sys.executable), "beside the running Python"))
    places.append((settings.path, "PATH"))
    for place, where in places:
        program = shutil.which("ninja", path=place) if place else None
        if program is not None:
            return Evidence("ninja", program, where)
    return Evidence(
        "ninja", None, "looked in the ninja package, beside the running Python and on PATH", "Run: pip install ninja",
    )  # fmt: skip


def _find_torch_npu() -> tuple[Evidence, Evidence]:
    """Version and directory, without importing torch_npu (which starts the device runtime)."""
    package_dir = _package_dir("torch_npu")
    if package_dir is None:
        absent = Evidence("torch_npu", None, "no module torch_npu", "On an NPU machine: pip install npu_ce_jit[npu]")
        return absent, absent._replace(name="torch_npu directory")
    directory = Evidence("torch_npu directory", str(package_dir), "its import path")
    version_file = package_dir / "version.py"
    try:
        text = version_file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Evidence("torch_npu", None, f"{version_file}: {error}", "Install torch_npu again."), directory
    facts = dict(re.findall(r"^(__version__|git_version)\s*(?::[^=]*)?=\s*['\"]([^'\"]+)", text, re.MULTILINE))
    if "__version__" not in facts:
        return Evidence(
            "torch_npu", None, f"{version_file} states no __version__", "Install torch_npu again."
        ), directory
    git = facts.get("git_version", "")[:12]
    return Evidence("torch_npu", facts["__version__"] + (f" git {git}" if git else ""), str(version_file)), directory


def _package_dir(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a finder that failed, or a stub module without a spec
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None
