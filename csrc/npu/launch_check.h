// SPDX-License-Identifier: Apache-2.0
// Whether kernels were launched. A launch returns nothing: CANN's code for it drops what the runtime says, and CANN
// 8.5.0's prints it.
#pragma once

#include <acl/acl.h>

#include <cstdint>
#include <string>

namespace npu_ce {

// Made before launches of this thread, asked after them. It takes no error away: torch_npu looks for what an earlier
// call left, such as a fault of the device's memory, when a later one fails.
class LaunchCheck {
 public:
  LaunchCheck();

  // What the runtime had against the last launches; empty where they are on their stream. `error` is what a launch
  // returned by itself.
  std::string problem(int error) const;

 private:
  aclError earlier_error_;
  uint64_t earlier_task_;
};

}  // namespace npu_ce
