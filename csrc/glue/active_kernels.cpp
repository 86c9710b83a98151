// SPDX-License-Identifier: Apache-2.0
#include "active_kernels.h"

#include <atomic>

namespace npu_ce {
namespace {

std::atomic<const Kernels*> in_use{&kKernels};
thread_local const Kernels* on_trial = nullptr;

// What the dispatcher calls.
template <BoxedKernel Kernels::* kernel>
void call(StableIValue* stack, uint64_t arguments, uint64_t results) {
  const Kernels* kernels = on_trial != nullptr ? on_trial : in_use.load(std::memory_order_acquire);
  (kernels->*kernel)(stack, arguments, results);
}

}  // namespace
}  // namespace npu_ce

// What the loader calls by name.
#define NPU_CE_EXPORT extern "C" __attribute__((visibility("default")))

// Called once per process and device: later libraries are activated through the one that was registered.
NPU_CE_EXPORT void npu_ce_jit_register() {
  using npu_ce::Kernels;
  static const npu_ce::Registration registration(npu_ce::kKernels.dispatch_key,
                                                 {{"_forward", npu_ce::call<&Kernels::forward>},
                                                  {"_backward", npu_ce::call<&Kernels::backward>},
                                                  {"_backward_", npu_ce::call<&Kernels::backward_in_place>}});
}

NPU_CE_EXPORT const void* npu_ce_jit_kernels() { return &npu_ce::kKernels; }

// Puts kernels into use for all threads, from the next call on. Their library must stay open.
NPU_CE_EXPORT void npu_ce_jit_use(const void* kernels) {
  npu_ce::in_use.store(static_cast<const npu_ce::Kernels*>(kernels), std::memory_order_release);
}

// Puts kernels into use for this thread alone, until it is called with null.
NPU_CE_EXPORT void npu_ce_jit_try(const void* kernels) {
  npu_ce::on_trial = static_cast<const npu_ce::Kernels*>(kernels);
}
