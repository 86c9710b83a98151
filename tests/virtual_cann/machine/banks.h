// SPDX-License-Identifier: Apache-2.0
// Where the operands of a vector instruction are in each other's way. The UB has 48 banks of 4 KiB. Blocks of 32 bytes
// that follow each other lie in 16 groups in turn, and each third of the UB has a bank of its own in every group. In
// one cycle a bank is read or written, and a group gives one block and takes one ("Avoid bank conflicts (2201)"; README
// of the published sample bank_conflict_ub).
#pragma once

#include <array>
#include <cstdint>
#include <map>

namespace virtual_cann {

// The blocks of one operand, with strides in blocks. A stride of 0 reads what it reads once.
struct BankOperand {
  uint32_t address = 0;
  uint32_t block_stride = 0;
  uint32_t repeat_stride = 0;
  uint32_t blocks = 0;  // of a repeat; 0: there is no such operand
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
  uint64_t read_write = 0;   // repeats of which a bank is read and written
  uint64_t cycles = 0;       // that the instruction takes longer: blocks of a repeat are written while others are read

  BankConflicts& operator+=(const BankConflicts& other);
};

// A kernel works on the same few buffers again and again, so what was found once is kept.
class Banks {
 public:
  const BankConflicts& conflicts(const BankOperands& operands);

 private:
  using Key = std::array<uint32_t, 1 + 4 * (1 + kMostSources)>;
  std::map<Key, BankConflicts> found_;
};

}  // namespace virtual_cann
