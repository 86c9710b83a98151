// SPDX-License-Identifier: Apache-2.0
#include "banks.h"

#include <algorithm>
#include <vector>

#include "hardware.h"

namespace virtual_cann {

namespace {

constexpr uint32_t kGroups = 16;
constexpr uint32_t kThirdBytes = kUbBytes / 3;

using Blocks = std::vector<uint32_t>;  // the blocks of one repeat, as block numbers in UB

uint64_t bank_of(uint32_t block) {
  return uint64_t{1} << (block % kGroups + block / (kThirdBytes / kBlockBytes) * kGroups);
}

uint64_t banks_of(const Blocks& blocks) {
  uint64_t banks = 0;
  for (const uint32_t block : blocks) banks |= bank_of(block);
  return banks;
}

// How many cycles longer the blocks take than one: a group passes one block a cycle.
uint64_t waiting(const Blocks& blocks) {
  std::array<uint64_t, kGroups> of_group{};
  for (const uint32_t block : blocks) ++of_group[block % kGroups];
  return std::max<uint64_t>(1, *std::max_element(of_group.begin(), of_group.end())) - 1;
}

Blocks blocks_of(const BankOperand& operand, uint32_t repeat) {
  Blocks blocks;
  const uint32_t first = operand.address / kBlockBytes + repeat * operand.repeat_stride;
  for (uint32_t i = 0; i < operand.blocks; ++i) {
    blocks.push_back(first + i * operand.block_stride);
    if (operand.block_stride == 0) break;
  }
  return blocks;
}

Blocks blocks_read(const BankOperand& source, uint32_t repeat) {
  return repeat > 0 && source.repeat_stride == 0 ? Blocks{} : blocks_of(source, repeat);
}

// The distinct blocks of all sources: a block that two of them share is read once.
Blocks blocks_read(const BankOperands& operands, uint32_t repeat) {
  Blocks all;
  if (repeat >= operands.repeats) return all;
  for (const BankOperand& source : operands.sources)
    for (const uint32_t block : blocks_read(source, repeat)) all.push_back(block);
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

// Whether a source is read, block for block, from the banks that are written. The hardware then delays the write until
// the next repeat.
bool is_put_off(const BankOperands& operands, const Blocks& written, uint32_t repeat) {
  const auto same_bank = [](uint32_t a, uint32_t b) { return bank_of(a) == bank_of(b); };
  return std::any_of(operands.sources.begin(), operands.sources.end(), [&](const BankOperand& source) {
    const Blocks read = blocks_read(source, repeat);
    return std::equal(read.begin(), read.end(), written.begin(), written.end(), same_bank);
  });
}

BankConflicts find(const BankOperands& operands) {
  BankConflicts conflicts;
  Blocks read = blocks_read(operands, 0);
  for (uint32_t repeat = 0; repeat < operands.repeats; ++repeat) {
    const Blocks written = blocks_of(operands.dst, repeat), next = blocks_read(operands, repeat + 1);
    const uint64_t banks = banks_of(written);
    const bool waits = (banks & banks_of(read)) && ((banks & banks_of(next)) || !is_put_off(operands, written, repeat));
    const uint64_t of_reads = waiting(read), of_writes = waiting(written);
    conflicts += {of_reads, of_writes, waits, std::max(of_reads, of_writes) + waits};
    read = next;
  }
  return conflicts;
}

}  // namespace

BankConflicts& BankConflicts::operator+=(const BankConflicts& other) {
  read_read += other.read_read;
  write_write += other.write_write;
  read_write += other.read_write;
  cycles += other.cycles;
  return *this;
}

const BankConflicts& Banks::conflicts(const BankOperands& operands) {
  Key key{operands.repeats};
  auto* to = &key[1];
  const auto add = [&](const BankOperand& operand) {
    for (const uint32_t value : {operand.address, operand.block_stride, operand.repeat_stride, operand.blocks})
      *to++ = value;
  };
  add(operands.dst);
  for (const BankOperand& source : operands.sources) add(source);
  const auto [place, is_new] = found_.try_emplace(key);
  if (is_new) place->second = find(operands);
  return place->second;
}

}  // namespace virtual_cann
