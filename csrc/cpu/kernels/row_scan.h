// SPDX-License-Identifier: Apache-2.0
// The inner loops of forward: one read of the logits, one exp per element.
#pragma once

#include "columns.h"
#include "row_state.h"
#include "vector_math.h"

namespace npu_ce {

// kVectors vectors from `from`; lanes at or behind `count` are -inf, which adds nothing to a sum of exp.
template <int kVectors, class S>
NPU_CE_INLINE void load_padded(const S* from, int64_t count, Vec<S> (&x)[kVectors]) {
  constexpr int64_t lanes = kLanes<S>;
  NPU_CE_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    const int64_t left = count - i * lanes;
    x[i] = left >= lanes ? load(from + i * lanes) : left > 0 ? load_partial(from + i * lanes, left) : Vec<S>{};
    for (int lane = 0; lane < lanes; ++lane) {
      if (lane >= left) x[i][lane] = -std::numeric_limits<Acc<S>>::infinity();
    }
  }
}

// Sum of exp(x' - max) where the max itself counts as exactly 1 and only the rest is rounded: beside a 1, float would
// lose the digits of a confident row's small rest, and with them those of its gradient.
template <class S>
double sum_exp_beside_max(const S* from, int64_t count, Acc<S> max) {
  constexpr int64_t lanes = kLanes<S>;
  Vec<S> rest{};
  Vec<S> at_max{};
  for (int64_t column = 0; column < count; column += lanes) {
    Vec<S> x[1] = {};
    load_padded(from + column, count - column, x);
    const Vec<S> shift = x[0] - max;
    rest += shift != 0 ? exp(shift) : Vec<S>{};
    at_max += shift == 0 ? splat(Acc<S>(1)) : Vec<S>{};
  }
  return sum_lanes(at_max) + sum_lanes(rest);
}

// Adds a block of columns to `state`. The max is raised on the way, four vectors at a time: after the first few of a
// row that is rare, and it saves reading the block twice.
template <bool kEntropy, class S>
void scan_block(const S* from, int64_t first_column, int64_t count, RowState<Acc<S>>& state) {
  using A = Acc<S>;
  using V = Vec<S>;
  constexpr int kVectors = 4;
  constexpr int64_t group = kVectors * kLanes<S>;
  V sum[kVectors] = {};
  V sum_times_shift[kVectors] = {};
  A max = state.max;
  V max_vector = splat(max);
  const V lowest = splat(static_cast<A>(kLowestExponent));

  auto add_group = [&](const V(&x)[kVectors]) __attribute__((always_inline)) {
    const V group_max = npu_ce::max(npu_ce::max(x[0], x[1]), npu_ce::max(x[2], x[3]));
    if (__builtin_expect(any_greater(group_max, max_vector), false)) {
      const A higher = std::max(max_lane(group_max), max);
      const A shift = max - higher;
      const V factor = exp(splat(shift));
      NPU_CE_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        if constexpr (kEntropy) {
          sum_times_shift[i] = factor * (sum_times_shift[i] + sum[i] * npu_ce::max(splat(shift), lowest));
        }
        sum[i] *= factor;
      }
      max = higher;
      max_vector = splat(max);
    }
    NPU_CE_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      const V shift = x[i] - max_vector;
      if constexpr (kEntropy) {
        const V e = exp(shift);
        sum[i] += e;
        sum_times_shift[i] = fma(e, npu_ce::max(shift, lowest), sum_times_shift[i]);
      } else {
        sum[i] = add_exp(shift, sum[i]);
      }
    }
  };

  int64_t column = 0;
  V x[kVectors] = {};
  for (; column + group <= count; column += group) {
    prefetch<group>(from + column);
    NPU_CE_UNROLL
    for (int i = 0; i < kVectors; i += 2) {
      const Pair<V> pair = load_pair(from + column + i * kLanes<S>);
      x[i] = pair.first;
      x[i + 1] = pair.second;
    }
    add_group(x);
  }
  if (column < count) {
    load_padded(from + column, count - column, x);
    add_group(x);
  }

  RowState<A> block;
  block.max = max;
  block.max_column = first_column;
  block.sum = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  constexpr double kConfident = 1 + 1.0 / 64;
  if (block.sum >= 1 && block.sum < kConfident) block.sum = sum_exp_beside_max(from, count, max);
  if constexpr (kEntropy) {
    block.sum_times_shift =
        sum_lanes((sum_times_shift[0] + sum_times_shift[1]) + (sum_times_shift[2] + sum_times_shift[3]));
  }
  state.merge(block);
}

// Sum of w * (x' - reference) over a block; without weights w is 1.
template <class S>
double weighted_sum(const S* from, const Acc<S>* weight, int64_t count, Acc<S> reference) {
  constexpr int64_t lanes = kLanes<S>;
  Vec<S> sum[2] = {};
  int64_t column = 0;
  auto term = [&](int64_t at, int64_t lane_count) __attribute__((always_inline)) {
    const Vec<S> shift = load(from + at, lane_count) - reference;
    return weight == nullptr ? shift : shift * load(weight + at, lane_count);
  };
  for (; column + 2 * lanes <= count; column += 2 * lanes) {
    sum[0] += term(column, lanes);
    sum[1] += term(column + lanes, lanes);
  }
  double tail = 0;
  for (; column < count; column += lanes) {
    const int64_t lane_count = std::min(lanes, count - column);
    const Vec<S> v = term(column, lane_count);
    for (int lane = 0; lane < lane_count; ++lane) tail += v[lane];
  }
  return sum_lanes(sum[0] + sum[1]) + tail;
}

}  // namespace npu_ce
