// SPDX-License-Identifier: Apache-2.0
// From the times of the cores to the time of the launch.
#pragma once

#include <cstdint>
#include <vector>

#include "timeline.h"

namespace virtual_cann {

struct CoreTimes {
  Moments end{};
  std::array<Moments, kPipes> busy{};
};

// `moved`: bytes read and written by all cores.
Estimates estimate(const std::vector<CoreTimes>& cores, double moved, KernelType type, const Hardware& hardware);

}  // namespace virtual_cann
