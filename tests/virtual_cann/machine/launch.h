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
  bool through_plugin = false;
};

// Puts the launch on the stream. The runtime defines it; like the real launch it returns nothing. Where it is refused,
// its error is the thread's last one and the device's; of a launch through CANN 8.5's plugin it is printed, and that is
// all, as on a board after the plugin's registration of the library failed.
void enqueue_kernel(KernelLaunch launch, void* stream);

template <bool kThroughPlugin>
struct LaunchBy {
  const char* kernel;
  uint32_t blocks;
  void* l2_control;
  void* stream;

  // The arguments are converted and copied now, as the real launch does: nothing of the caller's is kept.
  template <class... Parameters, class... Arguments>
  void run(void (*function)(Parameters...), Arguments&&... arguments) const {
    std::tuple<Parameters...> copies(static_cast<Parameters>(arguments)...);
    enqueue_kernel({kernel, blocks, [function, copies] { std::apply(function, copies); }, kThroughPlugin}, stream);
  }
};
using Launch = LaunchBy<false>;
using PluginLaunch = LaunchBy<true>;

}  // namespace virtual_cann
