// SPDX-License-Identifier: Apache-2.0
// What the plans of forward and backward share.
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

// Logits of up to this many bytes are read through the L2, where this launch or the next one is likely to find them.
// Reads of more bypass it in launches that write as much: what the L2 absorbs of the writes then costs HBM nothing.
constexpr uint64_t kL2Share = 32u << 20;

// From this many elements on, the work outweighs the launch, so every core should be busy.
constexpr uint64_t kMuchWork = 1'000'000;

// The fewest blocks that have no more units each than `most` blocks would have.
inline uint64_t even_blocks(uint64_t units, uint64_t most) {
  return units == 0 || most == 0 ? 0 : ceil_div(units, ceil_div(units, most));
}

inline bool is_little(const CeProblem& problem) { return problem.rows * problem.classes < kMuchWork; }

// How many cores are worth what the launch costs for them, by the problem alone. By one measurement a launch costs 0.27
// us for each core that it takes, by two others 1.7 or 2.8 us for any number; 1000 elements are about 0.075 us of work.
// By the first, sqrt(elements / 3600) cores are best; by the others, more are never worse. CANN's own operator takes a
// core for each row. So rows are cut for sqrt(elements / 2000) cores at most; whole rows have up to sqrt(elements /
// 300), and no more than the smaller chip has.
inline uint64_t useful_cores(const CeProblem& problem) {
  constexpr uint64_t kAllCores = 1000;
  constexpr uint64_t kShortRow = 512;  // columns: rows of fewer make short copies
  if (!is_little(problem)) return kAllCores;
  const auto elements = static_cast<double>(problem.rows * problem.classes);
  const auto for_cut_rows = static_cast<uint64_t>(std::lround(std::sqrt(elements / 2000)));
  const uint64_t for_whole_rows =
      problem.classes < kShortRow ? 0 : std::min(uint64_t{40}, static_cast<uint64_t>(std::sqrt(elements / 300)));
  return std::max({uint64_t{1}, for_cut_rows, even_blocks(problem.rows, for_whole_rows)});
}

// The number of blocks of a launch over `units`.
inline uint32_t blocks_of(const CeProblem& problem, uint64_t units, uint64_t cores) {
  const uint64_t most = std::min({units, cores, useful_cores(problem)});
  return static_cast<uint32_t>(is_little(problem) ? even_blocks(units, most) : most);
}

inline bool beyond_l2_share(const CeProblem& problem) {
  return problem.rows * problem.classes * (problem.dtype == kCeFloat32 ? 4 : 2) > kL2Share;
}

}  // namespace npu_ce
