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

// As few blocks as have no more units each than `most` of them would.
inline uint64_t even_blocks(uint64_t units, uint64_t most) {
  return units == 0 || most == 0 ? 0 : ceil_div(units, ceil_div(units, most));
}

inline bool is_little(const CeProblem& problem) { return problem.rows * problem.classes < kMuchWork; }

// Cores that are worth what the launch costs for them, by the problem alone. By one measurement a launch costs 0.27 us
// for each core that it takes, by two others 1.7 or 2.8 us for any number; 1000 elements are about 0.075 us of work. By
// the first the root of a 3600th is best, by the others there are never too many. CANN's own operator takes a core for
// each row. So rows are not cut for more cores than the root of a 2000th; whole ones have up to that of a 300th, and no
// more than the smaller chip has.
inline uint64_t useful_cores(const CeProblem& problem) {
  constexpr uint64_t kAllCores = 1000;
  constexpr uint64_t kShortRow = 512;  // columns: what a core copies of fewer would be short
  if (!is_little(problem)) return kAllCores;
  const auto elements = static_cast<double>(problem.rows * problem.classes);
  const auto for_cut_rows = static_cast<uint64_t>(std::lround(std::sqrt(elements / 2000)));
  const uint64_t for_whole_rows =
      problem.classes < kShortRow ? 0 : std::min(uint64_t{40}, static_cast<uint64_t>(std::sqrt(elements / 300)));
  return std::max({uint64_t{1}, for_cut_rows, even_blocks(problem.rows, for_whole_rows)});
}

// Of a launch over so many units.
inline uint32_t blocks_of(const CeProblem& problem, uint64_t units, uint64_t cores) {
  const uint64_t most = std::min({units, cores, useful_cores(problem)});
  return static_cast<uint32_t>(is_little(problem) ? even_blocks(units, most) : most);
}

inline bool beyond_l2_share(const CeProblem& problem) {
  return problem.rows * problem.classes * (problem.dtype == kCeFloat32 ? 4 : 2) > kL2Share;
}

}  // namespace npu_ce
