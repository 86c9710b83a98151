# SPDX-License-Identifier: Apache-2.0
"""The flags of the C++ compiler. The cache key and the ninja file both read them here; bisheng's are in `flag_sets`."""

from npu_ce_jit.torch_compat import NPU_GLUE_STANDARD, OPENMP_COMPILE, OPENMP_DIRS, OPENMP_LINK

CPU_LIBRARY = "libnpu_ce_jit_cpu.so"
NPU_LIBRARY = "libnpu_ce_jit_npu.so"

# The kernels call fma where they want it. So an expression gives the same bits wherever it is inlined.
_SAME_BITS = ("-ffp-contract=off",)
# -O3 gives no faster kernels than -O2 with their own unroll pragmas, and takes a third longer to compile.
COMPILE = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-Wall", *_SAME_BITS, *OPENMP_COMPILE)
# For the kernels only. The other units include torch's headers, and those read all of <immintrin.h> where they see that
# vector instructions are allowed: twice the compile time.
OF_ISA: dict[str, tuple[str, ...]] = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "neon": (),
    "baseline": (),
}
# An undefined symbol is an error of the link, which names it, and not of the first import.
LINK = ("-shared", "-Wl,-z,defs")
LIBRARIES = ("-ltorch_cpu", "-lc10", *OPENMP_LINK)
LIBRARY_DIRS = OPENMP_DIRS  # in addition to torch's

# torch_npu's wheels have the ABI that torch's have; some distributions' g++ has another default.
NPU_COMPILE = (NPU_GLUE_STANDARD, *COMPILE[1:], "-D_GLIBCXX_USE_CXX11_ABI=1")
# RPATH and not RUNPATH, which would let LD_LIBRARY_PATH lead to another library of the same name.
NPU_LINK = (*LINK, "-Wl,-rpath,$ORIGIN", "-Wl,--disable-new-dtags")
NPU_LIBRARIES = ("-ltorch_npu", "-lascendcl", *LIBRARIES)


def is_kernel(unit: str) -> bool:
    """Whether a unit is built for the CPU's vector instructions."""
    return unit.startswith("csrc/cpu/kernels/")
