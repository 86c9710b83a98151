// SPDX-License-Identifier: Apache-2.0
// The state of a row, or of a part of it, after reading its logits once.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "simd/types.h"

namespace npu_ce {

// With d = x' - max, over the columns read so far. `max` starts at the lowest finite number, not at -inf, so that x' -
// max is defined for a masked logit; a sum of 0 then says that every logit was -inf.
template <class A>
struct RowState {
  A max = std::numeric_limits<A>::lowest();
  double sum = 0;              // of exp(d)
  double sum_times_shift = 0;  // of exp(d) * d; kept only for the entropy
  double weighted = 0;         // of w * x'; kept only for label smoothing
  int64_t max_column = 0;      // no column left of it holds the max

  void raise_max(A higher) {
    const double shift = static_cast<double>(max) - static_cast<double>(higher);
    const double factor = std::exp(shift);
    // A sum of 0 carries nothing over, and 0 * -inf would make it NaN.
    sum_times_shift = sum == 0 ? 0 : factor * (sum_times_shift + shift * sum);
    sum *= factor;
    max = higher;
  }

  // `part` lies to the right of everything merged before.
  NPU_CE_NOINLINE void merge(RowState part) {
    if (part.max > max) {
      raise_max(part.max);
      max_column = part.max_column;
    } else {
      part.raise_max(max);
    }
    sum += part.sum;
    sum_times_shift += part.sum_times_shift;
    weighted += part.weighted;
  }
};

}  // namespace npu_ce
