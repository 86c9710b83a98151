// SPDX-License-Identifier: Apache-2.0
// The state of a unit, a span of one row, after its logits were read once: a few float32 numbers, each a vector over
// the units of a group. Rows of one span are finished from them at once; the states of other rows go through the
// workspace.
#pragma once

#include "../common/lanes.h"
#include "../ub/forward.h"

namespace npu_ce {

constexpr float kNoColumn = kLargestFloat;

class States {
 public:
  // `capacity` units, a multiple of 64. Lanes without a unit take part in instructions, so they have to hold numbers.
  __aicore__ inline void Init(TPipe* pipe, const ForwardOptions& options, uint32_t capacity) {
    options_ = options;
    capacity_ = capacity;
    uint32_t present = 0;
    for (uint32_t state = 0; state < State::kStates; ++state) {
      at_[state] = present * capacity;
      present += options.HasState(state) ? 1 : 0;
    }
    pipe->InitBuffer(vectors_, StateBytes(options, capacity));
    Duplicate(vectors_.Get<float>(), 1.0f, present * capacity);
    VectorBarrier();
  }

  __aicore__ inline LocalTensor<float> operator[](uint32_t state) const {
    return vectors_.GetWithOffset<float>(capacity_, at_[state] * sizeof(float));
  }

  // Writes `count` units from `first` on to the workspace's vectors, of `units` units each.
  __aicore__ inline void Write(float* workspace, uint64_t units, uint64_t first, uint32_t count) const {
    Order<HardEvent::V_MTE3>();
    for (uint32_t state = 0; state < State::kStates; ++state) {
      if (options_.HasState(state)) {
        CopyOut(InGm<float>(workspace + state * units, units)[first], (*this)[state], count);
      }
    }
    Order<HardEvent::MTE3_V>();
  }

 private:
  ForwardOptions options_;
  uint32_t capacity_;
  uint32_t at_[State::kStates];
  // Copies to GM come from VECOUT (page DataCopyPad). TBuf's Get is not const.
  mutable TBuf<QuePosition::VECOUT> vectors_;
};

}  // namespace npu_ce
