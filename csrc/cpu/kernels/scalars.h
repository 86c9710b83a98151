// SPDX-License-Identifier: Apache-2.0
// One value of a dtype that is known at run time only: for per-row values, never for logits.
#pragma once

#include "problem.h"
#include "simd/ops.h"

namespace npu_ce {

inline double read_scalar(const void* data, Dtype dtype, int64_t index) {
  switch (dtype) {
    case Dtype::kFloat32:
      return static_cast<const float*>(data)[index];
    case Dtype::kFloat64:
      return static_cast<const double*>(data)[index];
    case Dtype::kBFloat16:
      return to_acc(static_cast<const BFloat16*>(data)[index]);
    case Dtype::kFloat16:
      return to_acc(static_cast<const Float16*>(data)[index]);
  }
  __builtin_unreachable();
}

// A 16-bit value is rounded twice, to float and then to its dtype. That differs from one rounding only where float's
// rounding gives a tie; the error is then at most half a unit of the dtype's last place, plus 2^-14 of one.
inline void write_scalar(void* data, Dtype dtype, int64_t index, double value) {
  switch (dtype) {
    case Dtype::kFloat32:
      static_cast<float*>(data)[index] = static_cast<float>(value);
      return;
    case Dtype::kFloat64:
      static_cast<double*>(data)[index] = value;
      return;
    case Dtype::kBFloat16:
      static_cast<BFloat16*>(data)[index] = from_acc<BFloat16>(static_cast<float>(value));
      return;
    case Dtype::kFloat16:
      static_cast<Float16*>(data)[index] = from_acc<Float16>(static_cast<float>(value));
      return;
  }
}

inline bool present(const RowValues& values) { return values.data != nullptr; }

// 0 where the values are absent.
inline double value_at(const RowValues& values, int64_t row) {
  return present(values) ? read_scalar(values.data, values.dtype, row * values.stride_elems) : 0.0;
}

}  // namespace npu_ce
