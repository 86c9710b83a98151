// SPDX-License-Identifier: Apache-2.0
// Rows too short to fill vectors are turned on their side: a lane per row. No lane sees another, so a row's bits do not
// depend on the rows beside it.
#pragma once

#include "class_weights.h"
#include "logits.h"
#include "row_state.h"

namespace npu_ce {

constexpr int64_t kSmallClasses = 64;

template <class T>
class SmallRows {
 public:
  using A = Acc<T>;
  using V = Vec<T>;

  // `count` <= kLanes rows. Neither turn is inlined: forward and backward share it.
  NPU_CE_NOINLINE SmallRows(const Logits<T>& logits, int64_t first_row, int64_t count, int64_t classes)
      : count_(count), classes_(classes) {
    A rows[kRowsElems];
    if (logits.rows_are_adjacent(classes)) {
      logits.stage(logits.row(first_row), count * classes, rows, nullptr);
    } else {
      // What a row is padded with, the next one overwrites.
      for (int64_t lane = 0; lane < count; ++lane) {
        logits.stage(logits.row(first_row + lane), classes, rows + lane * classes, nullptr);
      }
    }
    std::fill(rows + count * classes, rows + kLanes<T> * classes + kLanes<T>, A(0));
    for (int64_t column = 0; column < classes; column += kLanes<T>) {
      // Where a row ends within the square, the next one follows, in columns that nobody reads.
      V square[kLanes<T>];
      NPU_CE_UNROLL
      for (int64_t i = 0; i < kLanes<T>; ++i) square[i] = load(rows + i * classes + column);
      transpose<A>(square);
      NPU_CE_UNROLL
      for (int64_t i = 0; i < kLanes<T>; ++i) columns_[column + i] = square[i];
    }
  }

  template <class F>
  void transform(F&& value) {
    for (int64_t column = 0; column < classes_; ++column) columns_[column] = value(columns_[column]);
  }

  NPU_CE_NOINLINE void write(T* to) const {
    A rows[kRowsElems];
    // Where a row ends within the square, what follows is overwritten: by the next lane, and by the squares to the
    // left, which come later.
    for (int64_t column = (classes_ - 1) / kLanes<T> * kLanes<T>; column >= 0; column -= kLanes<T>) {
      V square[kLanes<T>];
      NPU_CE_UNROLL
      for (int64_t i = 0; i < kLanes<T>; ++i) square[i] = columns_[column + i];
      transpose<A>(square);
      NPU_CE_UNROLL
      for (int64_t i = 0; i < kLanes<T>; ++i) store(rows + i * classes_ + column, square[i]);
    }
    write_columns(to, count_ * classes_,
                  [&](int64_t at, int64_t lanes) __attribute__((always_inline)) { return load(rows + at, lanes); });
  }

  void scan(const ClassWeights<A>& weights, bool smoothing, bool entropy) {
    const V lowest = splat(std::numeric_limits<A>::lowest());
    V row_max = lowest;
    for (int64_t column = 0; column < classes_; ++column) row_max = max(columns_[column], row_max);
    V at_max{};
    V rest{};
    V sum_times_shift{};
    V weighted{};
    const V reference = ((row_max > lowest) & (row_max < std::numeric_limits<A>::infinity())) ? row_max : V{};
    for (int64_t column = 0; column < classes_; ++column) {
      const V shift = columns_[column] - row_max;
      const V e = exp(shift);
      // The max counts as exactly 1, as in sum_exp_beside_max.
      at_max += shift == 0 ? splat(A(1)) : V{};
      rest += shift == 0 ? V{} : e;
      if (entropy) sum_times_shift += e * max(shift, splat(static_cast<A>(kLowestExponent)));
      if (smoothing) weighted += (columns_[column] - reference) * static_cast<A>(weights.at(column));
    }
    store(max_, row_max);
    store(sum_times_shift_, sum_times_shift);
    store(weighted_, weighted);
    store(reference_, reference);
    A parts[2][kLanes<T>];
    store(parts[0], at_max);
    store(parts[1], rest);
    for (int lane = 0; lane < kLanes<T>; ++lane) sums_[lane] = static_cast<double>(parts[0][lane]) + parts[1][lane];
    for (int lane = 0; lane < kLanes<T>; lane += kLanes<double>) store(log_sums_ + lane, log(load(sums_ + lane)));
  }

  // What the scan found.
  RowState<A> state(int64_t lane, double weight_total) const {
    return {max_[lane], sums_[lane], sum_times_shift_[lane], weighted_[lane] + reference_[lane] * weight_total, 0};
  }
  double log_sum(int64_t lane) const { return log_sums_[lane]; }

 private:
  // All rows, and what the last one's last vector has beyond it.
  static constexpr int64_t kRowsElems = kLanes<T> * (kSmallClasses + 1);

  int64_t count_;
  int64_t classes_;
  V columns_[kSmallClasses];
  double sums_[kLanes<T>];
  double log_sums_[kLanes<T>];
  A max_[kLanes<T>];
  A sum_times_shift_[kLanes<T>];
  A weighted_[kLanes<T>];
  A reference_[kLanes<T>];
};

}  // namespace npu_ce
