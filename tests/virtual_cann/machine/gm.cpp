// SPDX-License-Identifier: Apache-2.0
#include "gm.h"

namespace virtual_cann {

namespace {

uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

}  // namespace

std::optional<std::string> LiveMemory::outside(const void* pointer, uint64_t bytes) {
  const uintptr_t begin = address(pointer);
  const auto offset = [&] { return begin - address(last_.start); };
  if (begin < address(last_.start) || offset() >= last_.bytes) {
    GmRegion region{};
    if (!find_region_(pointer, &region)) return "an address that no live allocation holds";
    last_ = region;
  }
  if (bytes <= last_.bytes - offset()) return std::nullopt;
  return "bytes " + std::to_string(offset()) + " to " + std::to_string(offset() + bytes) + " of an allocation of " +
         std::to_string(last_.bytes);
}

std::string LiveMemory::describe(uintptr_t byte) const {
  const uintptr_t offset = byte - address(last_.start);
  if (offset >= last_.bytes) return "GM";
  return "GM byte " + std::to_string(offset) + " of its allocation";
}

void Races::Cores::add(uint32_t core) {
  if (first_ == kNone) {
    first_ = core;
  } else if (first_ != core && second_ == kNone) {
    second_ = core;
  }
}

std::optional<uint32_t> Races::Cores::other_than(uint32_t core) const {
  if (first_ != kNone && first_ != core) return first_;
  if (second_ != kNone && second_ != core) return second_;
  return std::nullopt;
}

std::optional<uint32_t> Races::read(uint32_t core, const void* pointer, uint64_t bytes) {
  std::optional<uint32_t> other;
  touched_.update(address(pointer), address(pointer) + bytes, [&](Touched& touched, uintptr_t) {
    if (!other) other = touched.writers.other_than(core);
    if (!other) other = touched.adders.other_than(core);
    touched.readers.add(core);
  });
  return other;
}

std::optional<uint32_t> Races::write(uint32_t core, const void* pointer, uint64_t bytes, bool atomic) {
  std::optional<uint32_t> other;
  touched_.update(address(pointer), address(pointer) + bytes, [&](Touched& touched, uintptr_t) {
    if (!other) other = touched.readers.other_than(core);
    if (!other) other = touched.writers.other_than(core);
    if (!other && !atomic) other = touched.adders.other_than(core);
    (atomic ? touched.adders : touched.writers).add(core);
  });
  return other;
}

}  // namespace virtual_cann
