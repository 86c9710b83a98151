// SPDX-License-Identifier: Apache-2.0
// What the glue needs of torch_npu, declared here because torch_npu's own header of either takes twice as long to
// compile as all of the glue. A function that a torch_npu does not have, with these very types, is refused by name at
// the link. What no linker can see is that NPUStream is a c10::Stream and nothing else: current_stream compares what it
// answers with torch's own answer.
#pragma once

#include <acl/acl.h>
#include <c10/core/Stream.h>

#include <functional>
#include <string>

namespace at_npu::native {

class OpCommand {
 public:
  // Runs `func` on the thread that hands torch_npu's operators to the device, after those that came before it; or at
  // once, where torch_npu uses no queue. A result other than 0 is raised by a later call.
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
