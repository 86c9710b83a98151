// SPDX-License-Identifier: Apache-2.0
// The scalar units' data caches, of the cores of one launch. A scalar access to GM goes through lines of 64 bytes,
// which only DataCacheCleanAndInvalid is sure to write back or to drop; DMA bypasses them ("DataCacheCleanAndInvalid").
// Here a line stays until then: the hardware may replace it earlier, but no kernel can rely on that.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "order.h"

namespace virtual_cann {

struct CacheFault {
  Rule rule;
  std::string expected;
  std::string got;
};

class DataCaches {
 public:
  explicit DataCaches(uint32_t cores) : lines_of_(cores) {}

  struct ScalarAccess {
    bool miss;
    std::optional<CacheFault> fault;
  };
  ScalarAccess read(uint32_t core, const void* pointer, uint64_t bytes);
  ScalarAccess write(uint32_t core, const void* pointer, uint64_t bytes, const Instruction& setter);
  std::optional<CacheFault> dma_read(const void* pointer, uint64_t bytes) const;
  std::optional<CacheFault> dma_write(const void* pointer, uint64_t bytes);

  // Calls written_back(address, bytes) with the line's dirty range, if there is one.
  template <class WrittenBack>
  void clean_line(uint32_t core, const void* pointer, WrittenBack&& written_back) {
    const uint64_t dirty = clean(core, reinterpret_cast<uintptr_t>(pointer));
    if (dirty == 0) return;
    const int first = __builtin_ctzll(dirty);
    written_back(line_of(pointer) + first, kDcacheLineBytes - __builtin_clzll(dirty) - first);
  }
  template <class WrittenBack>
  void clean_all(uint32_t core, WrittenBack&& written_back) {
    for (uintptr_t line : lines_of_[core]) clean_line(core, reinterpret_cast<const void*>(line), written_back);
  }
  void sync_all();

  // For the core's end. Calls dirty(setter) for every line that it leaves dirty.
  template <class Dirty>
  void drop(uint32_t core, Dirty&& dirty) {
    for (uintptr_t line : lines_of_[core])
      if (const auto copy = take_copy(core, line); copy && copy->dirty != 0) dirty(copy->setter);
    lines_of_[core].clear();
  }

 private:
  // One core's copy of a line; masks have a bit for each byte.
  struct Copy {
    uint32_t core;
    uint64_t held;
    uint64_t dirty;
    uint64_t stale;
    Instruction setter;
  };
  struct Line {
    std::vector<Copy> copies;
    std::optional<uint32_t> scalar_writer;  // since the last SyncAll
  };

  static uintptr_t line_of(const void* pointer);
  Copy& copy_of(uint32_t core, uintptr_t line);
  std::optional<Copy> take_copy(uint32_t core, uintptr_t line);
  uint64_t clean(uint32_t core, uintptr_t address);  // from there to the line's end; the bytes that were dirty

  std::map<uintptr_t, Line> lines_;
  std::vector<std::vector<uintptr_t>> lines_of_;  // for each core, the lines of which it has a copy
};

}  // namespace virtual_cann
