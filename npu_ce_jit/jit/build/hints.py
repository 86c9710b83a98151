# SPDX-License-Identifier: Apache-2.0
"""Hints for the known failures of the C++ compiler."""

from __future__ import annotations

import os
import re

# (pattern of the output, hint)
_HINTS = (
    (
        r"undefined reference to .(?:std::|operator (?:new|delete)|__cxa_|__gxx_personality|vtable for __cxxabiv1)",
        "{cxx} drives C, and links no C++ library: set CXX to the driver for C++ beside it, {driver}.",
    ),
    (r"ended with code 0 and made no", "{cxx} does not compile: set CXX to a C++17 compiler, or unset it."),
)
_OTHERWISE = "Mend the first error and build again; `python -m npu_ce_jit doctor` shows what was found on this machine."


def of(output: str, program: str) -> str:
    """The hint for a failure of the C++ compiler `program` with this output."""
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, output)), _OTHERWISE)
    path, name = os.path.split(program)
    driver = re.sub(r"(?<![a-z])(?:gcc|cc)(?![a-z])", lambda match: {"gcc": "g++", "cc": "c++"}[match[0]], name)
    return hint.format(cxx=program, driver=os.path.join(path, re.sub(r"clang(?!\+)", "clang++", driver)))
