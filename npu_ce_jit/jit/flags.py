# SPDX-License-Identifier: Apache-2.0
"""The compiler and linker flags of the CPU library. The cache key and the ninja file both read them here."""

from __future__ import annotations

LIBRARY_FILE = "libnpu_ce_jit_cpu.so"

# The kernels call fma where they want it: the same expression gives the same bits wherever it is inlined.
_SAME_BITS = ("-ffp-contract=off",)
_COMPILE = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-Wall", *_SAME_BITS)
_OF_ISA: dict[str, tuple[str, ...]] = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "neon": (),
    "baseline": (),
}
# Units at the top of csrc check arguments and call kernels, a few hundred instructions a call. They include torch's
# headers, and optimising those further takes a third of their compile time.
GLUE = ("-O1",)
# A symbol that nobody defines is an error now, with its name, and not at the first import.
LINK = ("-shared", "-Wl,-z,defs")
LIBRARIES = ("-ltorch_cpu",)


def compile_flags(cpu_isa: str) -> tuple[str, ...]:
    """The flags for one of `NPU_CE_JIT_CPU_ISA`'s values."""
    return _COMPILE + _OF_ISA[cpu_isa]


def is_glue(unit: str) -> bool:
    """Whether a unit stands at the top of csrc."""
    return unit.count("/") == 1
