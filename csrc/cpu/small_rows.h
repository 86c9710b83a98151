// SPDX-License-Identifier: Apache-2.0
// Rows too short to fill vectors are turned on their side: a lane per row.
#pragma once

#include "class_weights.h"
#include "logits.h"
#include "row_state.h"

namespace npu_ce {

constexpr int64_t kSmallClasses = 64;

// States of `count` <= kLanes rows. No lane sees another, so a row's bits do not depend on the rows beside it.
template <class T>
void scan_small_rows(const Logits<T>& logits, const ClassWeights<Acc<T>>& weights, bool smoothing, bool entropy,
                     int64_t first_row, int64_t count, int64_t classes, RowState<Acc<T>>* states) {
  using A = Acc<T>;
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  const V lowest = splat(std::numeric_limits<A>::lowest());
  V columns[kSmallClasses] = {};
  for (int64_t lane = 0; lane < count; ++lane) {
    A row[kSmallClasses + lanes];
    logits.stage(logits.row(first_row + lane), classes, row, nullptr);
    for (int64_t column = 0; column < classes; ++column) columns[column][lane] = row[column];
  }
  V row_max = lowest;
  for (int64_t column = 0; column < classes; ++column) row_max = max(columns[column], row_max);
  V at_max{};
  V rest{};
  V sum_times_shift{};
  V weighted{};
  const V reference = (row_max > lowest) & (row_max < std::numeric_limits<A>::infinity()) ? row_max : V{};
  for (int64_t column = 0; column < classes; ++column) {
    const V shift = columns[column] - row_max;
    const V e = exp(shift);
    // The max counts as exactly 1, as in sum_exp_beside_max.
    at_max += shift == 0 ? splat(A(1)) : V{};
    rest += shift == 0 ? V{} : e;
    if (entropy) sum_times_shift += e * max(shift, lowest);
    if (smoothing) weighted += (columns[column] - reference) * static_cast<A>(weights.at(column));
  }
  for (int64_t lane = 0; lane < count; ++lane) {
    RowState<A>& state = states[lane];
    state.max = row_max[lane];
    state.sum = static_cast<double>(at_max[lane]) + static_cast<double>(rest[lane]);
    state.sum_times_shift = sum_times_shift[lane];
    if (smoothing) {
      state.weighted = static_cast<double>(weighted[lane]) + static_cast<double>(reference[lane]) * weights.total();
    }
  }
}

}  // namespace npu_ce
