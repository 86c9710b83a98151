// SPDX-License-Identifier: Apache-2.0
// Intercepts the kernels' launches before the virtual runtime. To be preloaded (LD_PRELOAD), so that its symbols come
// first.
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

// From now on, the last block of this kernel does nothing.
void hook_lame(const char* kernel) { lame = kernel; }
// Launches are dropped and leave no error, like CANN 8.5.0's launches after the kernels could not be registered.
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
