// SPDX-License-Identifier: Apache-2.0
// Bank conflicts between the operands of a vector instruction. The UB has 48 banks of 4 KiB, in 16 groups of three.
// Consecutive blocks of 32 bytes lie in consecutive groups; each third of the UB has one bank of every group. In one
// cycle a bank can be read or written, and a group can be read once and written once ("Avoid bank conflicts (2201)";
// README of the published sample bank_conflict_ub).
#pragma once

#include <array>
#include <cstdint>
#include <map>

namespace virtual_cann {

// The blocks of one operand; strides are in blocks. A stride of 0 reads its blocks once.
struct BankOperand {
  uint32_t address = 0;
  uint32_t block_stride = 0;
  uint32_t repeat_stride = 0;
  uint32_t blocks = 0;  // in a repeat; 0: no operand
};

constexpr uint32_t kMostSources = 3;

struct BankOperands {
  uint32_t repeats = 0;
  BankOperand dst;
  std::array<BankOperand, kMostSources> sources;
};

struct BankConflicts {
  uint64_t read_read = 0;    // blocks that wait for another of their group to be read
  uint64_t write_write = 0;  // blocks that wait for another of their group to be written
  uint64_t read_write = 0;   // repeats whose read and write meet in a bank
  uint64_t cycles = 0;       // lost by the instruction; waits for reads and for writes overlap

  BankConflicts& operator+=(const BankConflicts& other);
};

// Caches the results: a kernel uses the same few buffers again and again.
class Banks {
 public:
  const BankConflicts& conflicts(const BankOperands& operands);

 private:
  using Key = std::array<uint32_t, 1 + 4 * (1 + kMostSources)>;
  std::map<Key, BankConflicts> found_;
};

}  // namespace virtual_cann
