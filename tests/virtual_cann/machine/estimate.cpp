// SPDX-License-Identifier: Apache-2.0
#include "estimate.h"

#include <algorithm>

namespace virtual_cann {

Estimate estimate(const std::vector<CoreTimes>& cores, const Counters& total, KernelType type,
                  const Hardware& hardware) {
  // Blocks above the number of cores wait for those before them.
  Moments cycles{};
  for (size_t wave = 0; wave < cores.size(); wave += hardware.vector_cores) {
    const size_t end = std::min<size_t>(cores.size(), wave + hardware.vector_cores);
    Moments longest{};
    for (size_t core = wave; core < end; ++core)
      for (int i = 0; i < kEstimates; ++i) longest[i] = std::max(longest[i], cores[core].end[i]);
    for (int i = 0; i < kEstimates; ++i) cycles[i] += longest[i];
  }

  // The cost of a launch grows with the cores it takes ("Choose the number of cores and the kernel type").
  const double share = std::min(1.0, static_cast<double>(cores.size()) / hardware.vector_cores);
  const double launch = (type == KernelType::mix_vector ? kLaunchMix : kLaunchVector).value * share;
  // No launch is faster than all that it moves.
  const double memory = static_cast<double>(total.gm_bytes_read + total.gm_bytes_written) / kReadAndWrite.value;
  const auto microseconds = [&](int i) { return launch + 1e6 * std::max(memory, cycles[i] / hardware.hertz); };

  Estimate estimate{microseconds(0), microseconds(1), microseconds(2), {}};
  const auto ends_first = [](const CoreTimes& a, const CoreTimes& b) { return a.end[0] < b.end[0]; };
  const auto slowest = std::max_element(cores.begin(), cores.end(), ends_first);
  if (slowest == cores.end()) return estimate;
  for (int pipe = 0; pipe < kPipes; ++pipe) estimate.busy[pipe] = 1e6 * slowest->busy[pipe] / hardware.hertz;
  return estimate;
}

}  // namespace virtual_cann
