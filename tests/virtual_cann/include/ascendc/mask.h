// SPDX-License-Identifier: Apache-2.0
// The mask registers, for instructions with isSetMask = false. The hardware keeps them in order with all pipes.
#pragma once

#include "repeats.h"

namespace AscendC {

constexpr uint64_t MASK_PLACEHOLDER = 0;

inline void SetMaskCount() { virtual_cann::Core::current().mask.counter = true; }
inline void SetMaskNorm() { virtual_cann::Core::current().mask.counter = false; }

template <typename T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(const uint64_t maskHigh, const uint64_t maskLow) {
  auto& mask = virtual_cann::Core::current().mask;
  mask.low = maskLow;
  mask.high = maskHigh;
}

// Sets the first `len` lanes of a repeat or, in counter mode, of the whole instruction.
template <typename T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(int32_t len, Place place = Place::here()) {
  using namespace virtual_cann::api;
  Core& core = Core::current();
  core.issue(Pipe::S, "SetVectorMask", place);
  if constexpr (mode == MaskMode::COUNTER)
    core.mask = {static_cast<uint64_t>(len), 0, core.mask.counter};
  else
    set_lanes(core, kRepeatBytes / sizeof(T), static_cast<uint64_t>(len));
}

inline void ResetMask() {
  auto& mask = virtual_cann::Core::current().mask;
  mask.low = mask.high = ~uint64_t{0};
}

}  // namespace AscendC
