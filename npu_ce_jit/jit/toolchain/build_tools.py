# SPDX-License-Identifier: Apache-2.0
"""The programs that every build needs: a C++ compiler and ninja."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from npu_ce_jit.jit.toolchain.finding import Finding
from npu_ce_jit.settings import Settings


def find_cxx(settings: Settings) -> Finding:
    if settings.cxx:
        try:
            words = shlex.split(settings.cxx)
        except ValueError as error:
            words, why = [], f"CXX={settings.cxx!r} is not a command line ({error})"
        else:
            why = f"CXX={settings.cxx}, but no such program is on PATH"
        program = shutil.which(words[0], path=settings.path) if words else None
        if program is None:
            return Finding("C++ compiler", None, why, "Set CXX to a C++17 compiler, or unset it to use g++ or clang++.")
        return Finding("C++ compiler", shlex.join([program, *words[1:]]), "CXX")
    for name in ("g++", "clang++", "c++"):
        program = shutil.which(name, path=settings.path)
        if program is not None:
            return Finding("C++ compiler", shlex.quote(program), f"{name} on PATH")
    return Finding(
        "C++ compiler", None, "CXX is not set and neither g++, clang++ nor c++ is on PATH",
        "Install one (Debian, Ubuntu: apt-get install g++; conda: conda install gxx), or set CXX.",
    )  # fmt: skip


def find_ninja(settings: Settings, package_dir: Path | None) -> Finding:
    """In this order: where the ninja wheel put it, beside its `package_dir`; beside the running Python; on PATH.

    A virtual environment that is used without being activated has ninja in its bin directory only.
    """
    places: list[tuple[str, str]] = []
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
            return Finding("ninja", program, where)
    return Finding(
        "ninja", None, "looked in the ninja package, beside the running Python and on PATH", "Run: pip install ninja",
    )  # fmt: skip
