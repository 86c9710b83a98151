// SPDX-License-Identifier: Apache-2.0
#include "ub.h"

#include <cstring>
#include <utility>

namespace virtual_cann {

namespace {

constexpr int kPoison = 0xff;  // a NaN as float32, float16 and bfloat16; as uint32, an offset beyond every bound

// The bits of a block's bytes in [from, to).
uint32_t bits(uint32_t from, uint32_t to) {
  const uint32_t below = to == kBlockBytes ? ~0u : (1u << to) - 1;
  return below & (~0u << from);
}

// Calls visit(block, bits) for every block of the range.
template <class Visit>
void each_block(uint32_t address, uint32_t bytes, Visit&& visit) {
  const uint32_t end = address + bytes;
  const uint32_t first = address / kBlockBytes;
  const uint32_t last = (end - 1) / kBlockBytes;
  const uint32_t from = address % kBlockBytes;
  const uint32_t to = (end - 1) % kBlockBytes + 1;
  if (first == last) return visit(first, bits(from, to));
  visit(first, bits(from, kBlockBytes));
  for (uint32_t block = first + 1; block < last; ++block) visit(block, ~0u);
  visit(last, bits(0, to));
}

}  // namespace

Ub::Ub() : bytes_(kUbBytes), written_(kBlocks) {}

void Ub::clear() {
  touches_.clear();
  free_all();
}

std::optional<uint32_t> Ub::allocate(uint32_t bytes) {
  const uint64_t end = (uint64_t{allocated_} + bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
  if (end > kUsableUbBytes) return std::nullopt;
  ++buffers_;
  const uint32_t address = std::exchange(allocated_, static_cast<uint32_t>(end));
  poison(address, allocated_ - address);
  return address;
}

void Ub::free_all() { allocated_ = buffers_ = 0; }

std::optional<uint32_t> Ub::first_unwritten(uint32_t address, uint32_t bytes) const {
  uint32_t missing = 0;
  each_block(address, bytes, [&](uint32_t block, uint32_t wanted) { missing |= wanted & ~written_[block]; });
  if (missing == 0) return std::nullopt;
  uint32_t byte = address;
  while ((written_[byte / kBlockBytes] >> byte % kBlockBytes & 1) != 0) ++byte;
  return byte;
}

void Ub::mark_written(uint32_t address, uint32_t bytes) {
  each_block(address, bytes, [&](uint32_t block, uint32_t bits) { written_[block] |= bits; });
}

void Ub::poison(uint32_t address, uint32_t bytes) {
  std::memset(at(address), kPoison, bytes);
  each_block(address, bytes, [&](uint32_t block, uint32_t bits) { written_[block] &= ~bits; });
}

}  // namespace virtual_cann
