// SPDX-License-Identifier: Apache-2.0
// Parts of all reductions: a repeat's lanes, and how a group of lanes becomes one value.
#pragma once

#include <limits>

#include "elementwise.h"
#include "vector_binary.h"

namespace virtual_cann::api {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The lanes of a source, repeat by repeat. Masked-out lanes hold a neutral value.
template <class T>
class SourceRepeats {
 public:
  SourceRepeats(Core& core, const Extent& extent, const Operand& source, float neutral)
      : core_(core), extent_(extent), source_(source), neutral_(narrow<T>(neutral)) {
    if (extent.full() && source.contiguous(extent.lanes))
      whole_ =
          reinterpret_cast<const T*>(core.read(source.address, static_cast<uint32_t>(extent.elements() * sizeof(T))));
  }

  const T* lanes(uint32_t repeat) {
    const T* const whole = whole_ ? whole_ + uint64_t{repeat} * extent_.lanes : nullptr;
    const uint32_t size = extent_.lanes_of(repeat);
    if (whole && size == extent_.lanes) return whole;
    std::fill_n(buffer_, extent_.lanes, neutral_);
    if (whole) {
      std::copy_n(whole, size, buffer_);
    } else {
      const uint32_t cut = source_.block_stride == 1 ? extent_.lanes : source_.per_block();
      extent_.for_runs(repeat, cut, [&](uint32_t first, uint32_t end) {
        const uint32_t bytes = (end - first) * sizeof(T);
        std::memcpy(buffer_ + first, core_.read(source_.at(repeat, first), bytes), bytes);
      });
    }
    return buffer_;
  }

 private:
  Core& core_;
  const Extent& extent_;
  const Operand& source_;
  const T neutral_;
  const T* whole_ = nullptr;
  T buffer_[kRepeatBytes / sizeof(T)];
};

// A pairwise sum: neighbours, then pairs of pairs (ReduceDataBlock); each sum is rounded to T.
template <uint32_t size, class T>
T tree_sum(const T* lanes) {
  float sums[size];
  for (uint32_t i = 0; i < size; ++i) sums[i] = static_cast<float>(widen(lanes[i]));
  for (uint32_t left = size / 2; left > 0; left /= 2)
    for (uint32_t i = 0; i < left; ++i) sums[i] = widen(narrow<T>(sums[2 * i] + sums[2 * i + 1]));
  return narrow<T>(sums[0]);
}

template <class T>
struct Extreme {
  T value;
  uint32_t lane;
};

// The extreme, and the lowest lane from `first` on that has it.
template <bool greatest, class T>
Extreme<T> extreme_of(const T* lanes, uint32_t first, uint32_t size) {
  float best = widen(lanes[first]);
  for (uint32_t i = first; i < size; ++i) {
    const float x = widen(lanes[i]);
    best = greatest ? greater_of(best, x) : lesser_of(best, x);
  }
  uint32_t lane = first;
  while (lane < size && !(widen(lanes[lane]) == best)) ++lane;
  return {narrow<T>(best), lane < size ? lane : first};
}

// Stores an index's bits as a value of T.
template <class T>
T index_as_value(uint64_t index) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  return bit_cast<T>(static_cast<Bits>(index));
}

}  // namespace virtual_cann::api
