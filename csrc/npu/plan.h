// SPDX-License-Identifier: Apache-2.0
// What the plans of forward and backward go by.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../../ascendc/abi/problem.h"

namespace npu_ce {

inline uint64_t ceil_div(uint64_t n, uint64_t by) { return (n + by - 1) / by; }
inline uint64_t ceil_to(uint64_t n, uint64_t multiple) { return ceil_div(n, multiple) * multiple; }

struct NpuLimits {
  uint32_t cores;     // vector cores of the device
  uint32_t ub_bytes;  // of a core that a kernel may use: 196,608 less the system's 256 and the compiler's 8 KiB
};

// Logits of up to so many bytes pass through the L2, where this launch or the next one is likely to find them. Reads of
// more go round it in launches that write as much: what the L2 takes up costs HBM nothing then.
constexpr uint64_t kL2Share = 32u << 20;

// Elements from which on work outweighs launches, so that every core is to be busy.
constexpr uint64_t kMuchWork = 1'000'000;

// Cores that are worth what the launch costs for them, by the problem alone. By one measurement a launch costs 0.27 us
// for each core that it takes, by another 1.7 us for any number; 1000 elements are about 0.075 us of work. By the first
// the root of a 3600th is best, by the second there are never too many.
inline uint64_t useful_cores(const CeProblem& problem) {
  constexpr uint64_t kAllCores = 1000;
  const uint64_t elements = problem.rows * problem.classes;
  if (elements >= kMuchWork) return kAllCores;
  return std::max(1L, std::lround(std::sqrt(static_cast<double>(elements) / 2000)));
}

inline bool beyond_l2_share(const CeProblem& problem) {
  return problem.rows * problem.classes * (problem.dtype == kCeFloat32 ? 4 : 2) > kL2Share;
}

}  // namespace npu_ce
