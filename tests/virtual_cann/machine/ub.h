// SPDX-License-Identifier: Apache-2.0
// The UB of one core: its bytes, which of them were ever written, and who touched them last.
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

  // Calls visit(touch, address) for every piece of the range: neighbours that have the same history are one.
  template <class Visit>
  void touch(uint32_t address, uint32_t bytes, Visit&& visit) {
    touches_.update(address, address + bytes, visit);
  }

 private:
  static constexpr uint32_t kBlocks = kUbBytes / kBlockBytes;
  uint32_t allocated_ = 0;
  uint32_t buffers_ = 0;
  std::vector<uint8_t> bytes_;
  std::vector<uint32_t> written_;  // a block, a bit a byte
  Intervals<Touch> touches_;
};

}  // namespace virtual_cann
