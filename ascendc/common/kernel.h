// SPDX-License-Identifier: Apache-2.0
// What every kernel consists of: its name spelled out, one TPipe, and a class that does the work. Never build a
// kernel's name by a macro: one release of the compiler finds a kernel's core type by the name's place in the source.
// The TPipe stands in the kernel function, since in an object it keeps scalars out of registers (page "Avoid TPipe
// inside objects").
#pragma once

#include "kernel_operator.h"

// How a kernel's declaration says that it needs vector cores only. Each release of the compiler has its own way, which
// the build defines; undefined, the compiler finds out by itself.
#ifndef NPU_CE_VECTOR
#define NPU_CE_VECTOR
#endif

namespace npu_ce {

template <class Kernel, class... Arguments>
__aicore__ inline void Run(AscendC::TPipe* pipe, const Arguments&... arguments) {
  Kernel kernel;
  kernel.Init(pipe, arguments...);
  kernel.Process();
}

}  // namespace npu_ce
