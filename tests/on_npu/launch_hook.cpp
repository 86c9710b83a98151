// SPDX-License-Identifier: Apache-2.0
// Stands between the kernels' launches and the virtual runtime. Loaded before all other libraries of a process, so that
// its names come first.
#include <dlfcn.h>

#include <string>
#include <utility>

#include "machine/core.h"
#include "machine/launch.h"

namespace {

std::string lame;
bool drops = false;

}  // namespace

extern "C" {

// The last block of this kernel does nothing from now on.
void hook_lame(const char* kernel) { lame = kernel; }
// Launches are not made and leave no error, as CANN 8.5.0's once it could not register the kernels.
void hook_drop(bool on) { drops = on; }

}  // extern "C"

namespace virtual_cann {

void enqueue_kernel(KernelLaunch launch, void* stream) {
  if (drops) return;
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
