// SPDX-License-Identifier: Apache-2.0
#include "estimate.h"

#include <algorithm>

namespace virtual_cann {

namespace {

double launch_cost(const Rates& rates, KernelType type, double share_of_cores) {
  const size_t on_cores = rate_named(type == KernelType::mix_vector ? "launch_mix_on_cores" : "launch_on_cores");
  return std::max(rates[rate_named("launch")], rates[on_cores] * share_of_cores);
}

}  // namespace

Estimates estimate(const std::vector<CoreTimes>& cores, double moved, KernelType type, const Hardware& hardware) {
  // Blocks run in waves of as many as there are cores.
  Moments cycles{};
  for (size_t wave = 0; wave < cores.size(); wave += hardware.vector_cores) {
    const size_t end = std::min<size_t>(cores.size(), wave + hardware.vector_cores);
    Moments longest{};
    for (size_t core = wave; core < end; ++core)
      for (size_t i = 0; i < kTimelines; ++i) longest[i] = std::max(longest[i], cores[core].end[i]);
    for (size_t i = 0; i < kTimelines; ++i) cycles[i] += longest[i];
  }

  // The cost of a launch grows with the number of its cores ("Choose the number of cores and the kernel type").
  const double share = std::min(1.0, static_cast<double>(cores.size()) / hardware.vector_cores);
  // Half of the L2: of 192 MB, RMSNorm had the L2's rate at 80 MB and not at 132 MB.
  const bool in_l2 = moved <= static_cast<double>(hardware.l2_bytes) / 2;

  Estimates estimates;
  for (size_t i = 0; i < kAssumptions; ++i) {
    const auto& [name, rates] = assumptions()[i];
    const size_t timeline = timeline_of(i, in_l2);
    // No launch is faster than the memory takes for all its bytes.
    const double memory = moved / rates[rate_named("read_and_write")];
    const double work = std::max(memory, cycles[timeline] / hardware.hertz);
    Estimate& estimate = estimates.emplace_back(Estimate{name, launch_cost(rates, type, share) + 1e6 * work, {}});
    const auto ends_first = [&](const CoreTimes& a, const CoreTimes& b) { return a.end[timeline] < b.end[timeline]; };
    const auto slowest = std::max_element(cores.begin(), cores.end(), ends_first);
    for (int pipe = 0; pipe < kPipes; ++pipe)
      estimate.busy[pipe] = 1e6 * slowest->busy[pipe][timeline] / hardware.hertz;
  }
  return estimates;
}

}  // namespace virtual_cann
