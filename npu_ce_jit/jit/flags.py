# SPDX-License-Identifier: Apache-2.0
"""The compiler and linker flags of the CPU library. The cache key and the ninja file both read them here."""

from __future__ import annotations

LIBRARY_FILE = "libnpu_ce_jit_cpu.so"

# The kernels call fma where they want it: the same expression gives the same bits wherever it is inlined.
_SAME_BITS = ("-ffp-contract=off",)
# -O3 gives no faster kernels than -O2 with the unrolling that they ask for, and takes a third longer to compile.
COMPILE = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-Wall", *_SAME_BITS)
# For the kernels only. The other units include torch's headers, and those read all of <immintrin.h> where they see that
# vector instructions are allowed: twice the compile time.
OF_ISA: dict[str, tuple[str, ...]] = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "neon": (),
    "baseline": (),
}
# A symbol that nobody defines is an error now, with its name, and not at the first import.
LINK = ("-shared", "-Wl,-z,defs")
LIBRARIES = ("-ltorch_cpu",)


def is_kernel(unit: str) -> bool:
    """Whether a unit is built for the CPU's vector instructions."""
    return unit.startswith("csrc/cpu/")
