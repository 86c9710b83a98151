// SPDX-License-Identifier: Apache-2.0
// The device that a tensor is on, and its queue of work.
#pragma once

#include <c10/core/DeviceGuard.h>

#include <cstdint>
#include <functional>

#include "glue/abi.h"

namespace npu_ce {

// Throws std::runtime_error for a tensor on an NPU whose elements lie otherwise than its strides say.
void require_plain_format(const Tensor& tensor, const char* name);

// Makes the tensor's device the current one, on which torch_npu takes its streams and its memory, as long as it lives.
// Throws std::runtime_error for a tensor that is not on an NPU.
class NpuGuard {
 public:
  explicit NpuGuard(const Tensor& input);

  // Those that the current stream may use. More blocks would take other streams' share.
  uint32_t vector_cores() const;

  // Has `launch` enqueue kernels, one at least, on the current stream, after all that torch_npu was told to do before:
  // from another thread and after this returns. So `launch` holds values only, and no tensor: memory that is given back
  // meanwhile is taken again by what runs later on this stream.
  void enqueue(const char* name, std::function<int(void* stream)> launch) const;

 private:
  c10::Device device_;
  c10::DeviceGuard guard_;
  void* stream_;
};

}  // namespace npu_ce
