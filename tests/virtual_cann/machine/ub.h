// SPDX-License-Identifier: Apache-2.0
// The UB of one core: its bytes, which of them were ever written, and who touched them last.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "hardware.h"
#include "order.h"

namespace virtual_cann {

class Ub {
 public:
  Ub();

  // As it is when a kernel begins: nothing allocated, nothing written.
  void clear();

  // The address of a new buffer, whose content is junk, or none if it does not fit.
  std::optional<uint32_t> allocate(uint32_t bytes);
  void free_all();
  uint32_t allocated() const { return allocated_; }
  uint32_t buffers() const { return buffers_; }

  uint8_t* at(uint32_t address) { return bytes_.data() + address; }
  std::optional<uint32_t> first_unwritten(uint32_t address, uint32_t bytes) const;
  void mark_written(uint32_t address, uint32_t bytes);
  void poison(uint32_t address, uint32_t bytes);  // unwritten again, and junk

  // Calls visit(touch, address) for every piece of the range. Blocks that are always touched as a whole are one piece,
  // others are a piece a byte: two instructions may write neighbouring results of one block.
  template <class Visit>
  void touch(uint32_t address, uint32_t bytes, Visit&& visit) {
    Touch before{}, after{};  // of the last whole block: most have the history of their neighbour
    bool is_known = false;
    for (const uint32_t end = address + bytes; address < end;) {
      const uint32_t block = address / kBlockBytes;
      const uint32_t begin = block * kBlockBytes;
      const uint32_t stop = std::min(end, begin + kBlockBytes);
      const bool whole = stop - address == kBlockBytes;
      if (whole && !is_split_[block]) {
        Touch& touch = touches_[block];
        if (is_known && touch == before) {
          touch = after;
        } else {
          before = touch;
          visit(touch, address);
          after = touch;
          is_known = true;
        }
      } else {
        Split& split = split_at(block);
        for (uint32_t byte = address; byte < stop; ++byte) visit(split[byte - begin], byte);
        if (whole) rejoin(block, split);
      }
      address = stop;
    }
  }

 private:
  using Split = std::array<Touch, kBlockBytes>;
  Split& split_at(uint32_t block);
  void rejoin(uint32_t block, const Split& split);

  static constexpr uint32_t kBlocks = kUbBytes / kBlockBytes;
  uint32_t allocated_ = 0;
  uint32_t buffers_ = 0;
  uint32_t used_ = 0;  // of all that was ever allocated, the end: what clear() has to clear
  std::vector<uint8_t> bytes_;
  std::vector<uint32_t> written_;  // a block, a bit a byte
  std::vector<Touch> touches_;
  std::vector<uint8_t> is_split_;
  std::unordered_map<uint32_t, Split> splits_;
};

}  // namespace virtual_cann
