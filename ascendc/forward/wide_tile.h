// SPDX-License-Identifier: Apache-2.0
// What the wide layout does with one tile of a row: the online softmax, lane by lane, and what the options add.
#pragma once

#include "unit_lanes.h"

namespace npu_ce {

class WideTile {
 public:
  // `separate`: exp(x' - max) gets a buffer of its own, so that x' stays.
  __aicore__ inline void Init(TPipe* pipe, const ForwardOptions& options, uint32_t columns, bool separate) {
    options_ = options;
    separate_ = separate;
    const WideTileBytes bytes(options, columns, separate);
    pipe->InitBuffer(work_, bytes.work);
    if (bytes.terms > 0) pipe->InitBuffer(terms_, bytes.terms);
    pipe->InitBuffer(lanes_, bytes.lanes);
    if (options.argmax) {
      pipe->InitBuffer(bits_, bytes.bits);
      pipe->InitBuffer(index_, bytes.index);
      CountUp(index_.Get<float>(), columns);
    }
  }

  // Room for a quarter of the next tile, which may lie in another third of the UB than the work: see FoldByTurns.
  __aicore__ inline void SetSpare(bool has_spare, const LocalTensor<float>& spare) {
    has_spare_ = has_spare;
    spare_ = spare;
  }

  // The first tile of a unit, where no option needs more than max and sum: there is no running max to raise yet.
  __aicore__ inline void Begin(UnitLanes& lanes, uint32_t unit, const LocalTensor<float>& x, uint32_t count) {
    const uint32_t repeats = Repeats(count);
    const LocalTensor<float> max = lanes.Get(unit, UnitLane::kMax);
    Maxs(max, MaxOfTile(x, repeats), -kLargestFloat, kCeLanes);
    VectorBarrier();
    const LocalTensor<float> e = separate_ ? work_.Get<float>() : x;
    SubLanes(e, x, max, repeats);
    VectorBarrier();
    Exp(e, e, repeats * kCeLanes);
    VectorBarrier();
    Adds(lanes.Get(unit, UnitLane::kSum), SumOfTile(e, repeats), 0.0f, kCeLanes);
  }

  // Adds `count` columns of x' from column `first` of the row on to the lanes of a unit; what follows them up to a
  // whole repeat is -inf. `weights` are those of the tile. Without `separate`, x is overwritten.
  __aicore__ inline void Add(UnitLanes& lanes, uint32_t unit, const LocalTensor<float>& x, uint32_t first,
                             uint32_t count, const LocalTensor<float>& weights) {
    const uint32_t repeats = Repeats(count);
    const LocalTensor<float> max = lanes.Get(unit, UnitLane::kMax), sum = lanes.Get(unit, UnitLane::kSum);
    const LocalTensor<float> new_max = lanes_.Get<float>(), raise = lanes_.Get<float>()[kCeLanes];
    const LocalTensor<float> work = work_.Get<float>();

    Max(new_max, max, MaxOfTile(x, repeats), kCeLanes);
    VectorBarrier();
    if (options_.argmax) {
      AddColumns(lanes, unit, x, new_max, first, repeats);
    }
    const LocalTensor<float> shift = separate_ ? work : x;
    SubLanes(shift, x, new_max, repeats);
    Sub(raise, max, new_max, kCeLanes);
    Adds(max, new_max, 0.0f, kCeLanes);
    VectorBarrier();
    if (options_.smoothing) {
      AddWeighted(lanes, unit, shift, raise, count, weights);
    }
    if (options_.entropy) {
      // sum of e * (x' - new max) = sum of e * (x' - max) + raise * sum of e, all of it then scaled by exp(raise).
      AddRaised(lanes.Get(unit, UnitLane::kEntropy), sum, raise);
    }
    Exp(raise, raise, kCeLanes);
    const LocalTensor<float> e = options_.entropy ? terms_.Get<float>() : shift;
    Exp(e, shift, repeats * kCeLanes);
    VectorBarrier();
    if (options_.entropy) {
      AddEntropy(lanes.Get(unit, UnitLane::kEntropy), e, shift, raise, repeats);
    }
    const LocalTensor<float> more = SumOfTile(e, repeats);
    Mul(sum, sum, raise, kCeLanes);
    VectorBarrier();
    AscendC::Add(sum, sum, more, kCeLanes);
    VectorBarrier();
  }

 private:
  // These two reduce lane by lane, to the first repeat of what they return. This one leaves the tile as it is.
  __aicore__ inline LocalTensor<float> MaxOfTile(const LocalTensor<float>& x, uint32_t repeats) {
    const LocalTensor<float> work = work_.Get<float>();
    const uint32_t left = FoldOnce<MaxOf>(work, x, repeats);
    if (has_spare_) {
      return FoldByTurns<MaxOf>(work, spare_, left);
    }
    Fold<MaxOf>(work, left);
    return work;
  }
  // Overwrites e.
  __aicore__ inline LocalTensor<float> SumOfTile(const LocalTensor<float>& e, uint32_t repeats) {
    if (separate_) {
      Fold<SumOf>(e, repeats);
      return e;
    }
    return FoldByTurns<SumOf>(e, work_.Get<float>(), repeats);
  }

  // sums += factor * raise, where the raise of lanes that had no logit yet may be -inf.
  __aicore__ inline void AddRaised(const LocalTensor<float>& sums, const LocalTensor<float>& factor,
                                   const LocalTensor<float>& raise) {
    const LocalTensor<float> finite = terms_.Get<float>();
    Maxs(finite, raise, -kLargestFloat, kCeLanes);
    VectorBarrier();
    Mul(finite, finite, factor, kCeLanes);
    VectorBarrier();
    AscendC::Add(sums, sums, finite, kCeLanes);
    VectorBarrier();
  }

  __aicore__ inline void AddWeighted(UnitLanes& lanes, uint32_t unit, const LocalTensor<float>& shift,
                                     const LocalTensor<float>& raise, uint32_t count,
                                     const LocalTensor<float>& weights) {
    const LocalTensor<float> terms = terms_.Get<float>();
    const LocalTensor<float> weighted = lanes.Get(unit, UnitLane::kWeighted),
                             total = lanes.Get(unit, UnitLane::kWeights);
    const uint32_t repeats = Repeats(count);
    AddRaised(weighted, total, raise);
    FillTail(shift, count, 0.0f);
    if (options_.weights) {
      FillTail(weights, count, 0.0f);
      Mul(terms, shift, weights, repeats * kCeLanes);
      VectorBarrier();
      Fold<SumOf>(terms, repeats);
    } else {
      FoldInto<SumOf>(terms, shift, repeats);
    }
    AscendC::Add(weighted, weighted, terms, kCeLanes);
    VectorBarrier();
    if (options_.weights) {
      FoldInto<SumOf>(terms, weights, repeats);
    } else {
      Duplicate(terms, AsFloat(repeats), kCeLanes);
      VectorBarrier();
      FillTail(terms, count % kCeLanes, AsFloat(repeats - 1));
    }
    AscendC::Add(total, total, terms, kCeLanes);
    VectorBarrier();
    FillTail(shift, count, -kInfinity);
  }

  __aicore__ inline void AddEntropy(const LocalTensor<float>& sums, const LocalTensor<float>& e,
                                    const LocalTensor<float>& shift, const LocalTensor<float>& raise,
                                    uint32_t repeats) {
    Maxs(shift, shift, -kExponentOfZero, repeats * kCeLanes);
    VectorBarrier();
    Mul(shift, shift, e, repeats * kCeLanes);
    Mul(sums, sums, raise, kCeLanes);
    VectorBarrier();
    Fold<SumOf>(shift, repeats);
    AscendC::Add(sums, sums, shift, kCeLanes);
    VectorBarrier();
  }

  // For each lane, the lowest column that has its max, and the lowest that has a NaN.
  __aicore__ inline void AddColumns(UnitLanes& lanes, uint32_t unit, const LocalTensor<float>& x,
                                    const LocalTensor<float>& new_max, uint32_t first, uint32_t repeats) {
    const LocalTensor<float> found = terms_.Get<float>(), argmax = lanes.Get(unit, UnitLane::kArgmax);
    const LocalTensor<float> first_nan = lanes.Get(unit, UnitLane::kFirstNan), max = lanes.Get(unit, UnitLane::kMax);
    const LocalTensor<uint8_t> bits = bits_.Get<uint8_t>();
    for (uint32_t done = 0; done < repeats; done += kMaxRepeats - 3) {  // a multiple of 4: 32 bytes of bits
      const uint32_t part = Least(repeats - done, kMaxRepeats - 3);
      Compare(bits[done * kCeLanes / 8], x[done * kCeLanes], new_max, CMPMODE::EQ, uint64_t(kCeLanes), part,
              BinaryRepeatParams(1, 1, 1, 8, 8, 0));
    }
    LowestSelected(found, first, repeats);
    Compare(bits, new_max, max, CMPMODE::GT, kCeLanes);
    VectorBarrier();
    Select(argmax, bits, found, argmax, SELMODE::VSEL_TENSOR_TENSOR_MODE, kCeLanes);
    Compare(bits, x, x, CMPMODE::NE, repeats * kCeLanes);
    LowestSelected(found, first, repeats);
    Min(first_nan, first_nan, found, kCeLanes);
  }

  __aicore__ inline void LowestSelected(const LocalTensor<float>& found, uint32_t first, uint32_t repeats) {
    VectorBarrier();
    Select(found, bits_.Get<uint8_t>(), index_.Get<float>(), kNoColumn, SELMODE::VSEL_TENSOR_SCALAR_MODE,
           repeats * kCeLanes);
    VectorBarrier();
    Fold<MinOf>(found, repeats);
    Adds(found, found, AsFloat(first), kCeLanes);  // which leaves kNoColumn as it is
    VectorBarrier();
  }

  ForwardOptions options_;
  bool separate_, has_spare_;
  LocalTensor<float> spare_;
  TBuf<QuePosition::VECCALC> work_, terms_, lanes_, bits_, index_;
};

}  // namespace npu_ce
