// SPDX-License-Identifier: Apache-2.0
#include "estimate.h"

#include <algorithm>

namespace virtual_cann {

namespace {

// MTE2 and MTE3 of all cores share the device memory ("Analyse performance data"), and no launch is faster than that.
// The L2 takes up what is written as long as it has room and reads do not pass through it too (README cases 4 and 6).
double seconds_of_memory(uint64_t through_l2, const Counters& total, const Hardware& hardware) {
  const auto read = static_cast<double>(total.gm_bytes_read);
  const auto written = static_cast<double>(total.gm_bytes_written);
  const double displaced = read > 0 ? static_cast<double>(through_l2) / read : 0;
  const double taken_up = std::min(written, static_cast<double>(hardware.l2_bytes)) * (1 - displaced);
  return std::max((read + written - taken_up) / kHbm.value, (read + written) / kReadAndWrite.value);
}

}  // namespace

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

  uint64_t through_l2 = 0;
  for (const CoreTimes& core : cores) through_l2 += core.bytes_read_through_l2;
  const double memory = seconds_of_memory(through_l2, total, hardware);
  // The cost of a launch grows with the cores it takes ("Choose the number of cores and the kernel type").
  const double share = std::min(1.0, static_cast<double>(cores.size()) / hardware.vector_cores);
  const double launch = (type == KernelType::mix_vector ? kLaunchMix : kLaunchVector).value * share;
  const auto microseconds = [&](int i) { return launch + 1e6 * std::max(memory, cycles[i] / hardware.hertz); };

  Estimate estimate{microseconds(0), microseconds(1), microseconds(2), {}};
  const auto ends_first = [](const CoreTimes& a, const CoreTimes& b) { return a.end[0] < b.end[0]; };
  const auto slowest = std::max_element(cores.begin(), cores.end(), ends_first);
  if (slowest == cores.end()) return estimate;
  for (int pipe = 0; pipe < kPipes; ++pipe) estimate.busy[pipe] = 1e6 * slowest->busy[pipe] / hardware.hertz;
  const double stretch = std::max(1.0, memory * hardware.hertz / cycles[0]);
  for (Pipe pipe : {Pipe::MTE2, Pipe::MTE3}) estimate.busy[static_cast<size_t>(pipe)] *= stretch;
  return estimate;
}

}  // namespace virtual_cann
