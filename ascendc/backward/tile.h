// SPDX-License-Identifier: Apache-2.0
// The gradient of a tile: of a piece of one row, or of many rows. Either kind of Rows adds a number of each row to the
// row's elements, or multiplies them by it; all else is the same for every element.
#pragma once

#include "rows.h"

namespace npu_ce {

// Writes float32 zeros for any T, since a tile ends with a whole block: not every compiler makes a scalar bfloat16.
template <class T>
__aicore__ inline void FillZeros(const LocalTensor<T>& tile, uint32_t count) {
  Duplicate(tile.template ReinterpretCast<float>(), 0.0f, CeilTo(count * sizeof(T), sizeof(float)) / sizeof(float));
}

// One row: its numbers are scalars.
class OneRow {
 public:
  using Value = float;

  __aicore__ inline OneRow(const BackwardRows& rows, const BackwardOptions& options, uint32_t i, uint32_t columns)
      : offset(rows.offset.GetValue(i)),
        spread(rows.spread.GetValue(i)),
        slope(options.entropy ? rows.slope.GetValue(i) : 0),
        smooth(options.smooth ? rows.smooth.GetValue(i) : 0),
        columns_(columns) {}

  __aicore__ inline uint32_t Count() const { return columns_; }

  __aicore__ inline void Add(const LocalTensor<float>& to, const LocalTensor<float>& x, Value value) const {
    Adds(to, x, value, columns_);
    VectorBarrier();
  }
  __aicore__ inline void Multiply(const LocalTensor<float>& to, const LocalTensor<float>& x, Value value) const {
    Muls(to, x, value, columns_);
    VectorBarrier();
  }
  __aicore__ inline void Subtract(const LocalTensor<float>& from, Value value) const { Add(from, from, -value); }
  __aicore__ inline void SubtractWeights(const LocalTensor<float>& from, const LocalTensor<float>& weights,
                                         Value factor, const LocalTensor<float>&) const {
    Axpy(from, weights, -factor, columns_);
    VectorBarrier();
  }

  const Value offset;
  const Value spread;
  const Value slope;
  const Value smooth;

 private:
  uint32_t columns_;
};

// One tile: as it is read and as it is written, and the float32 tensors between.
template <class T>
struct BackwardTile {
  LocalTensor<T> in;
  LocalTensor<T> out;
  LocalTensor<T> log_prob;    // its gradient
  LocalTensor<float> x;       // the logits; overwritten
  LocalTensor<float> result;  // may be x where nothing is capped
  LocalTensor<float> term;    // scratch, if there are terms
  LocalTensor<float> weights;
};

template <class T, class Rows>
__aicore__ inline void ComputeGradient(const BackwardTile<T>& tile, const Rows& rows, const BackwardOptions& options,
                                       Logits& logits) {
  const LocalTensor<float> x = tile.x, result = tile.result, term = tile.term;
  const uint32_t count = rows.Count();
  logits.TransformBelowCap(x, count);
  if (!options.folds_max) {
    rows.Add(result, x, rows.offset);
  }
  if (options.entropy) {
    Maxs(result, result, -kExponentOfZero, count);
    VectorBarrier();
    rows.Multiply(term, result, rows.slope);
    rows.Add(term, term, rows.spread);
    Exp(result, result, count);
    VectorBarrier();
    Mul(result, result, term, count);
    VectorBarrier();
  } else {
    Exp(result, options.folds_max ? x : result, count);
    VectorBarrier();
    rows.Multiply(result, result, rows.spread);
  }
  if (options.weighted) {
    rows.SubtractWeights(result, tile.weights, rows.smooth, term);
  } else if (options.smooth) {
    rows.Subtract(result, rows.smooth);
  }
  if (options.log_prob) {
    if constexpr (kIsFloat<T>) {
      Axpy(result, tile.log_prob, logits.SlopeScale(), count);
    } else {
      ToFloats(term, tile.log_prob, count);
      VectorBarrier();
      Axpy(result, term, logits.SlopeScale(), count);
    }
    VectorBarrier();
  }
  if (logits.IsCapped()) {
    logits.CappedSlope(term, x, count);
    Mul(result, result, term, count);
    VectorBarrier();
  }
}

}  // namespace npu_ce
