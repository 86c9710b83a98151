// SPDX-License-Identifier: Apache-2.0
// What is known of a unit, a span of one row, after its logits were read once: a few float32 numbers, each a vector
// over the units of a group. Rows of one span are finished from them at once; of other rows they go through the
// workspace.
#pragma once

#include "../common/lanes.h"

namespace npu_ce {

// Scoped, and an index without a cast.
struct State {
  enum Index : uint32_t {
    kMax,       // of x', but never -inf, so that x' - max is defined for a masked logit
    kSum,       // of exp(x' - max): 0 says that every logit was -inf
    kTarget,    // x' of the target; 0 in a span without it
    kWeighted,  // sum of w * (x' - max): relative to the max, float32 loses no digits to an offset of all logits
    kWeights,   // sum of w
    kEntropy,   // sum of exp(x' - max) * (x' - max)
    kArgmax,    // the first column that has the max; kNoColumn if none has
    kFirstNan,  // the first column with a NaN, or kNoColumn
    kStates,
  };
};

constexpr float kNoColumn = kLargestFloat;

// What of all that this loss needs.
struct ForwardOptions {
  __aicore__ inline ForwardOptions() = default;
  __aicore__ inline ForwardOptions(const CeProblem& problem, const CeForwardOutputs& outputs)
      : smoothing(problem.label_smoothing != 0),
        weights(problem.weight != nullptr),
        entropy(outputs.entropy != nullptr),
        argmax(outputs.argmax != nullptr) {}

  __aicore__ inline bool Has(uint32_t state) const {
    return state <= State::kTarget || (state <= State::kWeights && smoothing) ||
           (state == State::kEntropy && entropy) || (state >= State::kArgmax && argmax);
  }

  bool smoothing, weights, entropy, argmax;
};

class States {
 public:
  // `capacity` units, a multiple of 64. Lanes without a unit take part in instructions, so they have to hold numbers.
  __aicore__ inline void Init(TPipe* pipe, const ForwardOptions& options, uint32_t capacity) {
    options_ = options;
    capacity_ = capacity;
    uint32_t present = 0;
    for (uint32_t state = 0; state < State::kStates; ++state) {
      at_[state] = present * capacity;
      present += options.Has(state) ? 1 : 0;
    }
    pipe->InitBuffer(vectors_, present * capacity * sizeof(float));
    Duplicate(vectors_.Get<float>(), 1.0f, present * capacity);
    VectorBarrier();
  }

  __aicore__ inline LocalTensor<float> operator[](uint32_t state) const {
    return vectors_.GetWithOffset<float>(capacity_, at_[state] * sizeof(float));
  }

  // To vectors of `units` units in all.
  __aicore__ inline void Write(float* workspace, uint64_t units, uint64_t first, uint32_t count) const {
    Order<HardEvent::V_MTE3>();
    for (uint32_t state = 0; state < State::kStates; ++state) {
      if (options_.Has(state)) {
        CopyOut(InGm<float>(workspace + state * units, units)[first], (*this)[state], count);
      }
    }
    Order<HardEvent::MTE3_V>();
  }

 private:
  ForwardOptions options_;
  uint32_t capacity_;
  uint32_t at_[State::kStates];
  // Copies to GM begin there (page DataCopyPad). Its Get is not const.
  mutable TBuf<QuePosition::VECOUT> vectors_;
};

}  // namespace npu_ce
