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

  // `count` <= kLanes rows. Neither turn is inlined: moving lane by lane makes much code, and forward and backward
  // share it.
  NPU_CE_NOINLINE SmallRows(const Logits<T>& logits, int64_t first_row, int64_t count, int64_t classes)
      : count_(count), classes_(classes) {
    A rows[kLanes<T> * (kSmallClasses + 1)];
    if (logits.rows_are_adjacent(classes)) {
      logits.stage(logits.row(first_row), count * classes, rows, nullptr);
    } else {
      // What a row is padded with, the next one overwrites.
      for (int64_t lane = 0; lane < count; ++lane) {
        logits.stage(logits.row(first_row + lane), classes, rows + lane * classes, nullptr);
      }
    }
    for (int64_t column = 0; column < classes; ++column) {
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        columns_[column][lane] = lane < count ? rows[lane * classes + column] : A(0);
      }
    }
  }

  template <class F>
  void transform(F&& value) {
    for (int64_t column = 0; column < classes_; ++column) columns_[column] = value(columns_[column]);
  }

  NPU_CE_NOINLINE void write(T* to) const {
    A rows[kLanes<T> * (kSmallClasses + 1)];
    for (int64_t column = 0; column < classes_; ++column) {
      for (int64_t lane = 0; lane < count_; ++lane) rows[lane * classes_ + column] = columns_[column][lane];
    }
    write_columns(to, count_ * classes_,
                  [&](int64_t at, int64_t lanes) __attribute__((always_inline)) { return load(rows + at, lanes); });
  }

  void scan(const ClassWeights<A>& weights, bool smoothing, bool entropy, RowState<A>* states) const {
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
    for (int64_t lane = 0; lane < count_; ++lane) {
      RowState<A>& state = states[lane];
      state.max = row_max[lane];
      state.sum = static_cast<double>(at_max[lane]) + static_cast<double>(rest[lane]);
      state.sum_times_shift = sum_times_shift[lane];
      if (smoothing) {
        state.weighted = static_cast<double>(weighted[lane]) + static_cast<double>(reference[lane]) * weights.total();
      }
    }
  }

 private:
  int64_t count_;
  int64_t classes_;
  V columns_[kSmallClasses];
};

}  // namespace npu_ce
