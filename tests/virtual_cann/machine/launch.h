// SPDX-License-Identifier: Apache-2.0
// How a kernel gets to a core: bisheng turns kernel<<<blocks, l2, stream>>>(arguments) into Launch{...}.run(kernel,
// arguments).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <utility>

namespace virtual_cann {

struct KernelLaunch {
  std::string kernel;
  uint32_t blocks;
  std::function<void()> body;  // runs the kernel once, for the core that is current
};

// Puts the launch on the stream. The runtime defines it; like the real launch it returns nothing, and its errors are
// the thread's last error and the stream's.
void enqueue_kernel(KernelLaunch launch, void* stream);

struct Launch {
  const char* kernel;
  uint32_t blocks;
  void* l2_control;
  void* stream;

  // The arguments are converted and copied now, as the real launch does: nothing of the caller's is kept.
  template <class... Parameters, class... Arguments>
  void run(void (*function)(Parameters...), Arguments&&... arguments) const {
    std::tuple<Parameters...> copies(static_cast<Parameters>(arguments)...);
    enqueue_kernel({kernel, blocks, [function, copies] { std::apply(function, copies); }}, stream);
  }
};

}  // namespace virtual_cann
