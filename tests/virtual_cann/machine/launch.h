// SPDX-License-Identifier: Apache-2.0
// bisheng translates kernel<<<blocks, l2, stream>>>(arguments) into Launch{...}.run(kernel, arguments).
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

// Puts the launch on the stream; the runtime defines it. Like the real launch it returns nothing. The error of a
// refused launch becomes the thread's last error and the device's. A refused launch through CANN 8.5's plugin only
// prints its error, as on a board where the plugin could not register the library.
void enqueue_kernel(KernelLaunch launch, void* stream);

template <bool kThroughPlugin>
struct LaunchBy {
  const char* kernel;
  uint32_t blocks;
  void* l2_control;
  void* stream;

  // The arguments are converted and copied now, as in the real launch: later changes of the caller's have no effect.
  template <class... Parameters, class... Arguments>
  void run(void (*function)(Parameters...), Arguments&&... arguments) const {
    std::tuple<Parameters...> copies(static_cast<Parameters>(arguments)...);
    enqueue_kernel({kernel, blocks, [function, copies] { std::apply(function, copies); }, kThroughPlugin}, stream);
  }
};
using Launch = LaunchBy<false>;
using PluginLaunch = LaunchBy<true>;

}  // namespace virtual_cann
