// SPDX-License-Identifier: Apache-2.0
// The device that a tensor is on, and torch_npu's queue of work for it.
#pragma once

#include <c10/core/DeviceGuard.h>

#include <cstdint>
#include <functional>

#include "glue/abi.h"

namespace npu_ce {

// Throws std::runtime_error for a tensor on an NPU in a format whose memory layout its strides do not describe.
void require_plain_format(const Tensor& tensor, const char* name);

// While it lives, the tensor's device is the current one, whose streams and memory torch_npu uses. Throws
// std::runtime_error for a tensor that is not on an NPU.
class NpuGuard {
 public:
  explicit NpuGuard(const Tensor& input);

  // How many the current stream may use. More blocks than these would take other streams' share.
  uint32_t vector_cores() const;

  // Has `launch` enqueue at least one kernel on the current stream, behind the work that torch_npu has queued: on
  // another thread and after this returns, where torch_npu uses a queue. So `launch` holds values only, and no tensor:
  // memory that is freed meanwhile is reused only by what runs later on this stream.
  void enqueue(const char* name, std::function<int(void* stream)> launch) const;

 private:
  c10::Device device_;
  c10::DeviceGuard guard_;
  void* stream_;
};

}  // namespace npu_ce
