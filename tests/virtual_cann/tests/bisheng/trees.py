# SPDX-License-Identifier: Apache-2.0
"""Trees of the virtual CANN over a runtime of a few lines, which runs a launch at once and records it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from virtual_cann.environment import libclang
from virtual_cann.layouts import LAYOUTS, build_tree
from virtual_cann.runtime_library import VIRTUAL_CANN

# First on PATH is the interpreter of the tests, not a version manager's slow script.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
ASC = ["-x", "asc", "--npu-arch=dav-2201", "-std=c++17", "-fPIC", "-O2"]

KERNEL = """
#include <cstdint>
#include "machine/launch.h"
extern "C" __global__ __aicore__ void twice(__gm__ float* x, int32_t count) {
  for (int32_t i = 0; i < count; ++i) {
    x[i] = x[i] * 2.0f;
  }
}
extern "C" void launch(uint32_t blocks, void* stream, float* x, int32_t count) {
  twice<<<blocks, nullptr, stream>>>(x, count);
}
"""

SONAME = "libascendcl_of_a_few_lines.so"
RUNTIME = """
#include "machine/launch.h"
extern "C" { char last_kernel[100]; uint32_t last_blocks; void* last_stream; bool last_through_plugin; }
void virtual_cann::enqueue_kernel(KernelLaunch launch, void* stream) {
  last_kernel[launch.kernel.copy(last_kernel, 99)] = 0;
  last_blocks = launch.blocks;
  last_stream = stream;
  last_through_plugin = launch.through_plugin;
  for (uint32_t block = 0; block < launch.blocks; ++block) launch.body();
}
"""

# In place of the API: a system header, so it is not checked itself.
API = """
#pragma once
#include <cstdint>
namespace AscendC {
template <class T> struct GlobalTensor {
  template <class U> void SetGlobalBuffer(U* p, uint64_t n = 0) { data = reinterpret_cast<T*>(p); }
  T* data;
};
template <class... A> void printf(const char*, A...) {}
template <class T> void Exp(T*, T*, int) {}
struct TPipe { void Init() {} void Process() {} };
}
"""

Trees = dict[float, Path]  # by generation


def build_trees(root: Path) -> Trees:
    """Trees of all layouts, and beside them the directory of the API."""
    (root / "runtime.cpp").write_text(RUNTIME)
    (root / "acl").mkdir()
    (root / "api").mkdir()
    (root / "api" / "api.h").write_text(API)
    subprocess.run(
        ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{VIRTUAL_CANN}", f"-Wl,-soname,{SONAME}", root / "runtime.cpp",
         "-o", root / "libascendcl.so"], check=True,
    )  # fmt: skip
    for generation, layout in LAYOUTS.items():
        build_tree(
            root / str(generation), layout, root / "libascendcl.so", root / "acl", libclang(Path(sys.prefix)), "test"
        )
    return {generation: root / str(generation) for generation in LAYOUTS}


def load(trees: Trees, library: Path) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """The library, and the runtime that its launches reach.

    Neither is loaded globally: other tests of the process load kernels that need the whole runtime.
    """
    runtime = ctypes.CDLL(trees[9.1].parent / "libascendcl.so")
    return ctypes.CDLL(library, mode=os.RTLD_NOW | os.RTLD_DEEPBIND), runtime
