// SPDX-License-Identifier: Apache-2.0
// Whether kernels were launched. A launch returns nothing: CANN's code for it drops what the runtime returns, and CANN
// 8.5.0's prints it.
#pragma once

#include <acl/acl.h>

#include <cstdint>
#include <string>

namespace npu_ce {

// Construct it before launches of this thread, and ask it after them. It clears no error: when a later call fails,
// torch_npu looks for the error that an earlier one has left, such as a fault of the device's memory.
class LaunchCheck {
 public:
  LaunchCheck();

  // Why the runtime did not accept the launches; empty where they are on their stream. `error` is what the function
  // that makes them returned.
  std::string problem(int error) const;

 private:
  aclError earlier_error_;
  uint64_t earlier_task_;
};

}  // namespace npu_ce
