// SPDX-License-Identifier: Apache-2.0
// What the glue needs of torch_npu, declared here because each of torch_npu's own headers takes twice as long to
// compile as all of the glue. Where torch_npu lacks a function with exactly this signature, the link fails and names
// it. What no linker can see is that NPUStream is a c10::Stream and nothing else: current_stream compares the stream
// that it gets with torch's.
#pragma once

#include <acl/acl.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <functional>
#include <string>

namespace at {
class Tensor;
}

namespace at_npu::native {

// An aclFormat: the memory layout, where the tensor's strides do not describe it.
int64_t get_npu_format(const at::Tensor& tensor);

class OpCommand {
 public:
  // Runs `func` on the thread that hands torch_npu's operators to the device, after those that came before it; or at
  // once, where torch_npu uses no queue. With a queue, an exception is printed to stderr and a later
  // call raises; without one it is raised here.
  static void RunOpApiV2(const std::string& op_name, const std::function<int()>& func, bool sync = false);
};

}  // namespace at_npu::native

namespace c10_npu {

class NPUStream {
 public:
  // Instead of its constructor, which looks the stream up once more.
  static const NPUStream& of(const c10::Stream& stream) { return reinterpret_cast<const NPUStream&>(stream); }

  // `need_empty`: whether to wait until the queue is empty.
  aclrtStream stream(bool need_empty) const;
};

}  // namespace c10_npu
