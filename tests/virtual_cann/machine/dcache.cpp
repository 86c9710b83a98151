// SPDX-License-Identifier: Apache-2.0
#include "dcache.h"

#include <algorithm>

namespace virtual_cann {

namespace {

constexpr uintptr_t kLine = kDcacheLineBytes;

// The bits of the line's bytes in [begin, end).
uint64_t bits(uintptr_t line, uintptr_t begin, uintptr_t end) {
  const uintptr_t from = std::max(begin, line) - line;
  const uintptr_t to = std::min(end, line + kLine) - line;
  const uint64_t below = to == kLine ? ~uint64_t{0} : (uint64_t{1} << to) - 1;
  return below & (~uint64_t{0} << from);
}

CacheFault never_cleaned(const Instruction& setter, uint32_t core) {
  return {Rule::dcache_dirty, "DataCacheCleanAndInvalid after " + describe(setter),
          "the line is still only in the data cache of core " + std::to_string(core)};
}

CacheFault old_line() {
  return {Rule::dcache_stale, "DataCacheCleanAndInvalid before it",
          "the data cache holds the line as it was before it was last written"};
}

}  // namespace

uintptr_t DataCaches::line_of(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) / kLine * kLine; }

DataCaches::Copy& DataCaches::copy_of(uint32_t core, uintptr_t line) {
  auto& copies = lines_[line].copies;
  const auto copy = std::find_if(copies.begin(), copies.end(), [&](const Copy& copy) { return copy.core == core; });
  if (copy != copies.end()) return *copy;
  lines_of_[core].push_back(line);
  copies.push_back({core, 0, 0, 0, {}});
  return copies.back();
}

DataCaches::ScalarAccess DataCaches::read(uint32_t core, const void* pointer, uint64_t bytes) {
  // A scalar is aligned to its size, so it lies in one line.
  const uintptr_t begin = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t line = line_of(pointer);
  const uint64_t wanted = bits(line, begin, begin + bytes);
  Copy& mine = copy_of(core, line);
  ScalarAccess access{(mine.held & wanted) != wanted, std::nullopt};
  mine.held = ~uint64_t{0};
  if ((mine.stale & wanted) != 0) access.fault = old_line();
  for (const Copy& copy : lines_[line].copies)
    if (copy.core != core && (copy.dirty & wanted) != 0) access.fault = never_cleaned(copy.setter, copy.core);
  return access;
}

DataCaches::ScalarAccess DataCaches::write(uint32_t core, const void* pointer, uint64_t bytes,
                                           const Instruction& setter) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t line = line_of(pointer);
  const uint64_t wanted = bits(line, begin, begin + bytes);
  Copy& mine = copy_of(core, line);
  ScalarAccess access{mine.held == 0, std::nullopt};
  // A line is written back whole, with its old values of the other bytes ("Cache coherence": WAW).
  if ((mine.stale & ~wanted) != 0) access.fault = old_line();
  mine.held = ~uint64_t{0};
  mine.dirty |= wanted;
  mine.stale &= ~wanted;
  mine.setter = setter;
  auto& writer = lines_[line].scalar_writer;
  if (writer && *writer != core) {
    access.fault = CacheFault{Rule::dcache_shared, "a line of 64 bytes that no other core writes through its cache",
                              "core " + std::to_string(*writer) + " writes it too: either may undo the other's"};
  }
  writer = core;
  return access;
}

std::optional<CacheFault> DataCaches::dma_read(const void* pointer, uint64_t bytes) const {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t end = begin + bytes;
  for (auto line = lines_.lower_bound(line_of(pointer)); line != lines_.end() && line->first < end; ++line)
    for (const Copy& copy : line->second.copies)
      if ((copy.dirty & bits(line->first, begin, end)) != 0) return never_cleaned(copy.setter, copy.core);
  return std::nullopt;
}

std::optional<CacheFault> DataCaches::dma_write(const void* pointer, uint64_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t end = begin + bytes;
  std::optional<CacheFault> fault;
  for (auto line = lines_.lower_bound(line_of(pointer)); line != lines_.end() && line->first < end; ++line) {
    for (Copy& copy : line->second.copies) {
      // Also where only other bytes of the line are dirty: it is written back whole, over what the DMA wrote.
      if (copy.dirty != 0) fault = never_cleaned(copy.setter, copy.core);
      copy.stale |= copy.held & bits(line->first, begin, end);
    }
  }
  return fault;
}

uint64_t DataCaches::clean(uint32_t core, uintptr_t address) {
  const uintptr_t line = address / kLine * kLine;
  const auto found = lines_.find(line);
  if (found == lines_.end()) return 0;
  const uint64_t range = bits(line, address, line + kLine);
  uint64_t written_back = 0;
  for (Copy& copy : found->second.copies) {
    if (copy.core != core) continue;
    written_back = copy.dirty & range;
    copy.held &= ~range;
    copy.dirty &= ~range;
    copy.stale &= ~range;
  }
  for (Copy& copy : found->second.copies)
    if (copy.core != core) copy.stale |= copy.held & written_back;
  return written_back;
}

void DataCaches::sync_all() {
  for (auto& line : lines_) line.second.scalar_writer.reset();
}

std::optional<DataCaches::Copy> DataCaches::take_copy(uint32_t core, uintptr_t line) {
  const auto found = lines_.find(line);
  auto& copies = found->second.copies;
  const auto copy = std::find_if(copies.begin(), copies.end(), [&](const Copy& copy) { return copy.core == core; });
  const Copy taken = *copy;
  copies.erase(copy);
  if (copies.empty() && !found->second.scalar_writer) lines_.erase(found);
  return taken;
}

}  // namespace virtual_cann
