// SPDX-License-Identifier: Apache-2.0
// What is known of a launch when it is over.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "banks.h"
#include "rules.h"

namespace virtual_cann {

// Where in the kernel's source an API was called.
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
  uint32_t core;  // the first that broke the rule here
  std::string expected;
  std::string got;
  uint64_t times;  // by any core; a violation of one rule at one place is one entry
};

// What one core did.
struct Counters {
  uint64_t gm_bytes_read = 0;  // by DMA
  uint64_t gm_bytes_written = 0;
  uint64_t dma_reads = 0;  // instructions
  uint64_t dma_writes = 0;
  std::map<uint64_t, uint64_t> dma_sizes;  // bytes of a DMA instruction -> how many
  uint64_t vector_instructions = 0;
  uint64_t vector_repeats = 0;
  BankConflicts bank_conflicts;
  uint64_t scalar_ub_accesses = 0;
  uint64_t scalar_gm_accesses = 0;
  uint64_t flags = 0;  // SetFlag and WaitFlag, those of queues included
  uint64_t barriers = 0;
};

// Microseconds, under one of the assumptions that rates.h makes of its table.
struct Estimate {
  std::string assumption;  // "table", "fast", "slow", "exp fast", ...
  double microseconds;
  std::array<double, 4> busy;  // how long S, V, MTE2 and MTE3 of the slowest core are at work
};
using Estimates = std::vector<Estimate>;

struct Report {
  std::string kernel;
  uint32_t blocks;
  uint32_t blocks_run = 0;  // all of them, unless run.h was asked for fewer
  std::vector<Violation> violations;
  std::string exception;  // what the kernel threw, which no kernel may; empty if it did not
  std::vector<Counters> cores;
  Estimates estimates;

  bool failed() const { return !violations.empty() || !exception.empty(); }
  Counters total() const;
  std::string message() const;  // a line for each violation: rule, place, expected, got
  std::string json() const;
};

}  // namespace virtual_cann
