// SPDX-License-Identifier: Apache-2.0
// The wide layout's running state: 64 lanes for each unit of a group and each kind of state, so that nothing waits for
// the scalar unit while tiles stream by. Finish() reduces the lanes of each unit to one number, for all units at once.
#pragma once

#include "states.h"

namespace npu_ce {

class UnitLanes {
 public:
  __aicore__ inline void Init(TPipe* pipe, const ForwardOptions& options, uint32_t capacity) {
    options_ = options;
    pitch_ = 0;
    for (uint32_t kind = 0; kind < UnitLane::kKinds; ++kind) {
      at_[kind] = pitch_;
      pitch_ += options.HasLanes(kind) ? kCeLanes : 0;
    }
    const UnitLaneBytes bytes(options, capacity);
    pipe->InitBuffer(lanes_, bytes.lanes);
    pipe->InitBuffer(scratch_, bytes.scratch);
    pipe->InitBuffer(bits_, bytes.bits);
    pipe->InitBuffer(spread_, bytes.spread);
  }

  // Whether a unit has a max and a sum only, which its first tile sets.
  __aicore__ inline bool Plain() const { return pitch_ == 2 * kCeLanes; }

  // For the `count` units of a group.
  __aicore__ inline void Reset(uint32_t count) {
    if (Plain()) {
      return;
    }
    Duplicate(lanes_.Get<float>(), 0.0f, count * pitch_);
    VectorBarrier();
    Fill(UnitLane::kMax, -kLargestFloat, count);
    if (options_.argmax) {
      Fill(UnitLane::kArgmax, kNoColumn, count);
      Fill(UnitLane::kFirstNan, kNoColumn, count);
    }
  }

  __aicore__ inline LocalTensor<float> Get(uint32_t unit, UnitLane::Index lanes) const {
    return lanes_.Get<float>()[unit * pitch_ + at_[lanes]];
  }

  __aicore__ inline void Finish(const States& states, uint32_t count) {
    WholeReduceMax(states[State::kMax], All(UnitLane::kMax), kCeLanes, count, 1, 1, Step(),
                   ReduceOrder::ORDER_ONLY_VALUE);
    VectorBarrier();
    const LocalTensor<float> max = spread_.Get<float>();
    SpreadToBlocks(max, states[State::kMax], count);
    VectorBarrier();
    if (options_.argmax) {
      FinishArgmax(states, max, count);
    }
    Sub(All(UnitLane::kMax), All(UnitLane::kMax), max, kCeLanes, count, BinaryRepeatParams(1, 1, 0, Step(), Step(), 1));
    VectorBarrier();
    if (options_.smoothing || options_.entropy) {
      // In lanes without a logit it may be -inf, and times their 0 that would be NaN.
      Maxs(All(UnitLane::kMax), All(UnitLane::kMax), -kLargestFloat, kCeLanes, count,
           UnaryRepeatParams(1, 1, Step(), Step()));
      VectorBarrier();
    }
    if (options_.smoothing) {
      AddProduct(UnitLane::kWeighted, UnitLane::kWeights, count);
      SumOfLanes(states[State::kWeighted], UnitLane::kWeighted, count);
      SumOfLanes(states[State::kWeights], UnitLane::kWeights, count);
    }
    if (options_.entropy) {
      AddProduct(UnitLane::kEntropy, UnitLane::kSum, count);
    }
    Exp(All(UnitLane::kMax), All(UnitLane::kMax), kCeLanes, count, UnaryRepeatParams(1, 1, Step(), Step()));
    VectorBarrier();
    Scale(UnitLane::kSum, count);
    SumOfLanes(states[State::kSum], UnitLane::kSum, count);
    if (options_.entropy) {
      Scale(UnitLane::kEntropy, count);
      SumOfLanes(states[State::kEntropy], UnitLane::kEntropy, count);
    }
    VectorBarrier();
  }

  // Max and log_sum of one unit that is a whole row, for the scalar unit.
  __aicore__ inline void Read(uint32_t unit, float* max, float* log_sum) {
    const LocalTensor<float> scratch = scratch_.Get<float>(), spread = spread_.Get<float>();
    const LocalTensor<float> result = scratch[kCeLanes];
    const LocalTensor<float> log_of_sum = scratch[kCeLanes + kBlockFloats];
    Duplicate(result, 0.0f, 2 * kBlockFloats);
    VectorBarrier();
    WholeReduceMax(result, Get(unit, UnitLane::kMax), kCeLanes, 1, 1, 1, Step(), ReduceOrder::ORDER_ONLY_VALUE);
    VectorBarrier();
    SpreadToBlocks(spread, result, 1);
    VectorBarrier();
    Sub(scratch, Get(unit, UnitLane::kMax), spread, kCeLanes, 1, BinaryRepeatParams(1, 1, 0, 8, 8, 0));
    VectorBarrier();
    Exp(scratch, scratch, kCeLanes);
    VectorBarrier();
    Mul(scratch, scratch, Get(unit, UnitLane::kSum), kCeLanes);
    VectorBarrier();
    WholeReduceSum(log_of_sum, scratch, kCeLanes, 1, 1, 1, Step());
    VectorBarrier();
    Ln(log_of_sum, log_of_sum, 1);
    Order<HardEvent::V_S>();
    *max = result.GetValue(0);
    *log_sum = log_of_sum.GetValue(0);
    Order<HardEvent::S_V>();
  }

 private:
  // The lanes of all units; Step() is the repeat stride from unit to unit.
  __aicore__ inline LocalTensor<float> All(UnitLane::Index lanes) const { return Get(0, lanes); }
  __aicore__ inline uint32_t Step() const { return pitch_ / kBlockFloats; }

  __aicore__ inline void Fill(UnitLane::Index lanes, float value, uint32_t count) {
    Duplicate(All(lanes), value, uint64_t(kCeLanes), count, 1, Step());
  }
  __aicore__ inline void SumOfLanes(const LocalTensor<float>& sums, UnitLane::Index lanes, uint32_t count) {
    WholeReduceSum(sums, All(lanes), kCeLanes, count, 1, 1, Step());
  }
  // Multiplies by exp(max of the lane - max of the unit), which the max's lanes hold by then.
  __aicore__ inline void Scale(UnitLane::Index lanes, uint32_t count) {
    Mul(All(lanes), All(lanes), All(UnitLane::kMax), kCeLanes, count,
        BinaryRepeatParams(1, 1, 1, Step(), Step(), Step()));
    VectorBarrier();
  }
  // sums += factor * (max of the lane - max of the unit): the sum was relative to the lane's max, and now is to the
  // unit's.
  __aicore__ inline void AddProduct(UnitLane::Index sums, UnitLane::Index factor, uint32_t count) {
    const LocalTensor<float> product = scratch_.Get<float>();
    Mul(product, All(factor), All(UnitLane::kMax), kCeLanes, count, BinaryRepeatParams(1, 1, 1, 8, Step(), Step()));
    VectorBarrier();
    Add(All(sums), All(sums), product, kCeLanes, count, BinaryRepeatParams(1, 1, 1, Step(), Step(), 8));
    VectorBarrier();
  }

  // The lowest column among the lanes that have the max.
  __aicore__ inline void FinishArgmax(const States& states, const LocalTensor<float>& max, uint32_t count) {
    const LocalTensor<uint8_t> bits = bits_.Get<uint8_t>();
    const LocalTensor<float> columns = scratch_.Get<float>();
    Compare(bits, All(UnitLane::kMax), max, CMPMODE::EQ, uint64_t(kCeLanes), count,
            BinaryRepeatParams(1, 1, 0, 8, Step(), 1));
    VectorBarrier();
    Select(columns, bits, All(UnitLane::kArgmax), kNoColumn, SELMODE::VSEL_TENSOR_SCALAR_MODE, uint64_t(kCeLanes),
           count, BinaryRepeatParams(1, 1, 1, 8, Step(), Step()));
    VectorBarrier();
    WholeReduceMin(states[State::kArgmax], columns, kCeLanes, count, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
    WholeReduceMin(states[State::kFirstNan], All(UnitLane::kFirstNan), kCeLanes, count, 1, 1, Step(),
                   ReduceOrder::ORDER_ONLY_VALUE);
    VectorBarrier();
  }

  ForwardOptions options_;
  uint32_t pitch_;
  uint32_t at_[UnitLane::kKinds];                                       // offsets in floats
  mutable TBuf<QuePosition::VECCALC> lanes_, scratch_, bits_, spread_;  // TBuf's Get is not const
};

}  // namespace npu_ce
