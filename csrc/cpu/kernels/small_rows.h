// SPDX-License-Identifier: Apache-2.0
// Rows too short to fill vectors are transposed, so that each has a lane. No lane reads another, so a row's bits do not
// depend on the rows beside it.
#pragma once

#include "class_weights.h"
#include "logits.h"
#include "row_state.h"

namespace npu_ce {

constexpr int64_t kSmallClasses = 64;

// The states of several vectors of rows: as RowState, an array for each member. The logarithms of all these rows are
// taken together: those of one vector of rows alone would wait for each other.
template <class T>
struct SmallRowStates {
  using A = Acc<T>;
  static constexpr int64_t kRows = 8 * kLanes<T>;

  void take_logs(int64_t count) {
    for (int64_t row = 0; row < count; row += kLanes<double>) store(log_sum + row, log(load(sum + row)));
  }
  RowState<A> state(int64_t row, double weight_total) const {
    return {max[row], sum[row], sum_times_shift[row], weighted[row] + reference[row] * weight_total, 0};
  }

  A max[kRows];
  A sum_times_shift[kRows];
  A weighted[kRows];   // sum of w * (x' - reference)
  A reference[kRows];  // the max where it is finite, else 0
  double sum[kRows];
  double log_sum[kRows];
};

template <class T>
class SmallRows {
 public:
  using A = Acc<T>;
  using V = Vec<T>;

  // At most kLanes rows from `first_row` on, and none from `end_row` on, which another thread may be writing. This and
  // write() are not inlined: forward and backward share them.
  NPU_CE_NOINLINE SmallRows(const Logits<T>& logits, int64_t first_row, int64_t end_row, int64_t classes)
      : count_(std::min<int64_t>(kLanes<T>, end_row - first_row)), classes_(classes) {
    const bool adjacent = logits.rows_are_adjacent(classes);
    const bool may_read_on = (end_row - first_row - kLanes<T>)*classes >= kLanes<T>;
    if (adjacent && may_read_on && logits.are_inputs()) {
      turn(logits.row(first_row));
      return;
    }
    A rows[kRowsElems];
    if (adjacent) {
      logits.stage(logits.row(first_row), count_ * classes, rows, nullptr);
    } else {
      // The padding of each row is overwritten by the next row.
      for (int64_t lane = 0; lane < count_; ++lane) {
        logits.stage(logits.row(first_row + lane), classes, rows + lane * classes, nullptr);
      }
    }
    std::fill(rows + count_ * classes, rows + kLanes<T> * classes + kLanes<T>, A(0));
    turn(static_cast<const A*>(rows));
  }

  int64_t count() const { return count_; }

  template <class F>
  void transform(F&& value) {
    for (int64_t column = 0; column < classes_; ++column) columns_[column] = value(columns_[column]);
  }

  NPU_CE_NOINLINE void write(T* to) const {
    A rows[kRowsElems];
    // A square that reaches beyond a row's end writes into the next row, which is overwritten: by the next lane, and by
    // the squares to the left, which come later.
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

  // Writes the states of these rows to `states`, from row `at` on.
  void scan(const ClassWeights<A>& weights, bool smoothing, bool entropy, SmallRowStates<T>& states, int64_t at) const {
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
    store(states.max + at, row_max);
    store(states.sum_times_shift + at, sum_times_shift);
    store(states.weighted + at, weighted);
    store(states.reference + at, reference);
    A parts[2][kLanes<T>];
    store(parts[0], at_max);
    store(parts[1], rest);
    for (int i = 0; i < kLanes<T>; ++i) states.sum[at + i] = static_cast<double>(parts[0][i]) + parts[1][i];
  }

 private:
  // All rows, and the part of the last row's last vector that is beyond its end.
  static constexpr int64_t kRowsElems = kLanes<T> * (kSmallClasses + 1);

  // A square that reaches beyond a row's end fills columns that are never read.
  template <class S>
  void turn(const S* rows) {
    for (int64_t column = 0; column < classes_; column += kLanes<T>) {
      V square[kLanes<T>];
      NPU_CE_UNROLL
      for (int64_t i = 0; i < kLanes<T>; ++i) square[i] = load(rows + i * classes_ + column);
      transpose<A>(square);
      NPU_CE_UNROLL
      for (int64_t i = 0; i < kLanes<T>; ++i) columns_[column + i] = square[i];
    }
  }

  int64_t count_;
  int64_t classes_;
  V columns_[kSmallClasses];
};

}  // namespace npu_ce
