// SPDX-License-Identifier: Apache-2.0
// Stands between the kernels' launches and the virtual runtime, and answers two of the runtime's questions as a test
// wishes. Loaded before all other libraries of a process, so that its names come first.
#include <dlfcn.h>

#include <cstdint>
#include <string>
#include <utility>

#include "machine/core.h"
#include "machine/launch.h"

namespace {

std::string lame;
bool drops = false;
uint32_t vector_cores = 0;
thread_local uint32_t tasks = UINT32_MAX;

}  // namespace

extern "C" {

// The last block of this kernel does nothing from now on.
void hook_lame(const char* kernel) { lame = kernel; }
// Launches are not made and leave no error, as CANN 8.5.0's once it could not register the kernels.
void hook_drop(bool on) { drops = on; }
// The limit of every stream; 0 for an error.
void hook_vector_cores(uint32_t value) { vector_cores = value; }

int aclrtGetStreamResLimit(void*, int32_t resource, uint32_t* value) {
  if (resource != 1 || vector_cores == 0) return 107000;
  *value = vector_cores;
  return 0;
}

int rtGetTaskIdAndStreamID(uint32_t* task, uint32_t* stream) {
  *task = tasks;
  *stream = 3;
  return 0;
}

}  // extern "C"

namespace virtual_cann {

void enqueue_kernel(KernelLaunch launch, void* stream) {
  if (drops) return;
  ++tasks;
  if (launch.kernel == lame) {
    launch.body = [body = launch.body, last = launch.blocks - 1] {
      if (Core::current().index() != last) body();
    };
  }
  using Enqueue = void (*)(KernelLaunch, void*);
  static const auto next =
      reinterpret_cast<Enqueue>(dlsym(RTLD_NEXT, "_ZN12virtual_cann14enqueue_kernelENS_12KernelLaunchEPv"));
  next(std::move(launch), stream);
}

}  // namespace virtual_cann
