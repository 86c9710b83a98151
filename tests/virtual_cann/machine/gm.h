// SPDX-License-Identifier: Apache-2.0
// Device memory as one launch uses it: what is live, and which core accessed what since the last SyncAll.
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

  // The error of the access, if it has one.
  std::optional<std::string> outside(const void* pointer, uint64_t bytes);
  std::string describe(uintptr_t address) const;  // "GM byte 128 of its allocation", after outside()

 private:
  const FindRegion& find_region_;
  GmRegion last_{};
};

// Accesses of two cores are unordered unless a SyncAll lies between.
class Races {
 public:
  // Records the access; returns another core with which it races, if there is one.
  std::optional<uint32_t> read(uint32_t core, const void* pointer, uint64_t bytes);
  std::optional<uint32_t> write(uint32_t core, const void* pointer, uint64_t bytes, bool atomic);
  void sync_all() { touched_.clear(); }

 private:
  // No core, one, or several.
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
