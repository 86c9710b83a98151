// SPDX-License-Identifier: Apache-2.0
// The time of a launch, from the times of its cores.
#pragma once

#include <cstdint>
#include <vector>

#include "timeline.h"

namespace virtual_cann {

struct CoreTimes {
  Moments end{};
  std::array<Moments, kPipes> busy{};
};

// `moved`: the bytes that all cores read and write.
Estimates estimate(const std::vector<CoreTimes>& cores, double moved, KernelType type, const Hardware& hardware);

}  // namespace virtual_cann
