// SPDX-License-Identifier: Apache-2.0
// Device memory as the cores of one launch use it: what is live, and who touched what since the last SyncAll.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "intervals.h"
#include "run.h"

namespace virtual_cann {

class LiveMemory {
 public:
  explicit LiveMemory(const FindRegion& find_region) : find_region_(find_region) {}

  // What is wrong with the access, if anything is.
  std::optional<std::string> outside(const void* pointer, uint64_t bytes);
  std::string describe(uintptr_t address) const;  // "GM byte 128 of its allocation", if that was asked for last

 private:
  const FindRegion& find_region_;
  GmRegion last_{};
};

// Since the last SyncAll, nothing orders what two cores do.
class Races {
 public:
  // The other core, if one writes what the other touches.
  std::optional<uint32_t> read(uint32_t core, const void* pointer, uint64_t bytes);
  std::optional<uint32_t> write(uint32_t core, const void* pointer, uint64_t bytes, bool atomic);
  void sync_all() { touched_.clear(); }

 private:
  // A core, none, or several of them.
  class Cores {
   public:
    void add(uint32_t core);
    std::optional<uint32_t> other_than(uint32_t core) const;  // one of them
    bool operator==(const Cores& other) const { return first_ == other.first_ && second_ == other.second_; }

   private:
    static constexpr uint32_t kNone = UINT32_MAX;
    uint32_t first_ = kNone;
    uint32_t second_ = kNone;  // another, if there are several
  };
  struct Touched {
    Cores readers, writers, adders;  // adders write atomically
    bool operator==(const Touched& other) const {
      return readers == other.readers && writers == other.writers && adders == other.adders;
    }
  };

  Intervals<Touched> touched_;
};

}  // namespace virtual_cann
