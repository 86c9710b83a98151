// SPDX-License-Identifier: Apache-2.0
// The UB of one core: its bytes, which of them were written, and the last accesses.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "hardware.h"
#include "intervals.h"
#include "order.h"

namespace virtual_cann {

class Ub {
 public:
  Ub();

  // As a kernel finds it: nothing allocated, nothing written.
  void clear();

  // The address of a new buffer, filled with junk; none if it does not fit.
  std::optional<uint32_t> allocate(uint32_t bytes);
  void free_all();
  uint32_t allocated() const { return allocated_; }
  uint32_t buffers() const { return buffers_; }

  uint8_t* at(uint32_t address) { return bytes_.data() + address; }
  std::optional<uint32_t> first_unwritten(uint32_t address, uint32_t bytes) const;
  void mark_written(uint32_t address, uint32_t bytes);
  void poison(uint32_t address, uint32_t bytes);  // marks as unwritten, and fills with junk

  // Calls visit(touch, address) for every piece of the range. Neighbours with equal history are one piece.
  template <class Visit>
  void touch(uint32_t address, uint32_t bytes, Visit&& visit) {
    touches_.update(address, address + bytes, visit);
  }

 private:
  static constexpr uint32_t kBlocks = kUbBytes / kBlockBytes;
  uint32_t allocated_ = 0;
  uint32_t buffers_ = 0;
  std::vector<uint8_t> bytes_;
  std::vector<uint32_t> written_;  // a word for each block, a bit for each byte
  Intervals<Touch> touches_;
};

}  // namespace virtual_cann
