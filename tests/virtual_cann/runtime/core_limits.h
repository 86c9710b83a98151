// SPDX-License-Identifier: Apache-2.0
// How many cores of each kind work should use, where that was set: for a device in this process, or for a stream.
#pragma once

#include <array>
#include <mutex>
#include <optional>

#include "acl/acl.h"

namespace virtual_cann {

class CoreLimits {
 public:
  std::optional<uint32_t> get(aclrtDevResLimitType kind) const {
    std::lock_guard lock(mutex_);
    return limits_[kind];
  }
  void set(aclrtDevResLimitType kind, uint32_t cores) {
    std::lock_guard lock(mutex_);
    limits_[kind] = cores;
  }
  void reset() {
    std::lock_guard lock(mutex_);
    limits_ = {};
  }

 private:
  mutable std::mutex mutex_;
  std::array<std::optional<uint32_t>, 2> limits_;
};

}  // namespace virtual_cann
