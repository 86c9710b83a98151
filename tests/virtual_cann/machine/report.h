// SPDX-License-Identifier: Apache-2.0
// The results of a finished launch.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "banks.h"
#include "rules.h"

namespace virtual_cann {

// The place of an API's call in the kernel's source.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct Violation {
  Rule rule;
  std::string api;
  std::string file;
  int line;
  uint32_t core;  // the first core that broke the rule here
  std::string expected;
  std::string got;
  uint64_t times;  // by all cores; violations of one rule at one place are one entry
};

// The counters of one core.
struct Counters {
  uint64_t gm_bytes_read = 0;  // by DMA
  uint64_t gm_bytes_written = 0;
  uint64_t dma_reads = 0;  // instructions
  uint64_t dma_writes = 0;
  std::map<uint64_t, uint64_t> dma_sizes;  // bytes of a DMA instruction -> number of such instructions
  uint64_t vector_instructions = 0;
  uint64_t vector_repeats = 0;
  BankConflicts bank_conflicts;
  uint64_t scalar_ub_accesses = 0;
  uint64_t scalar_gm_accesses = 0;
  uint64_t flags = 0;  // SetFlag and WaitFlag, those of queues included
  uint64_t barriers = 0;
};

// A time in microseconds, under one of the assumptions of rates.h.
struct Estimate {
  std::string assumption;  // "table", "fast", "slow", "exp fast", ...
  double microseconds;
  std::array<double, 4> busy;  // how long S, V, MTE2 and MTE3 of the slowest core are busy
};
using Estimates = std::vector<Estimate>;

struct Report {
  std::string kernel;
  uint32_t blocks;
  uint32_t blocks_run = 0;  // fewer than `blocks` if run.h was asked to skip some
  std::vector<Violation> violations;
  std::string exception;  // what the kernel threw, although no kernel may throw; else empty
  std::vector<Counters> cores;
  Estimates estimates;

  bool failed() const { return !violations.empty() || !exception.empty(); }
  Counters total() const;
  std::string message() const;  // one line for each violation: rule, place, expected, got
  std::string json() const;
};

}  // namespace virtual_cann
