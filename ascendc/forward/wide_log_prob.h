// SPDX-License-Identifier: Apache-2.0
// log_prob of a tile of one row: (x' - max) - log_sum.
#pragma once

#include "../common/lanes.h"

namespace npu_ce {

template <class T>
class WideLogProb {
 public:
  __aicore__ inline void Init(const CeProblem& problem, void* log_prob) {
    to_ = InGm<T>(log_prob, problem.rows * problem.classes);
  }

  // Two subtractions keep the digits of a small log_sum beside a large max. Half and bfloat16 subtract lse at once
  // where |lse| <= 2^10 log_sum: every |log_prob| of the row is at least log_sum, so that lse's rounding is below
  // 1/8 of theirs.
  __aicore__ inline void SetRow(float max, float log_sum) {
    const float lse = max + log_sum, magnitude = lse < 0 ? -lse : lse;
    at_once_ = !kIsFloat<T> && log_sum * kEnough >= magnitude;
    first_ = at_once_ ? -lse : -max;
    second_ = -log_sum;
  }

  // Writes log_prob to `tile`, which may be x in float32. In half and bfloat16, x is overwritten.
  __aicore__ inline void Round(const LocalTensor<T>& tile, const LocalTensor<float>& x, uint32_t count) {
    if constexpr (kIsFloat<T>) {
      Normalise(tile, x, count);
    } else {
      Normalise(x, x, count);
      FromFloats(tile, x, count);
    }
  }

  // `at` is the place in log_prob.
  __aicore__ inline void Write(const LocalTensor<T>& tile, uint64_t at, uint32_t count) {
    CopyOut(to_[at], tile, count);
  }

 private:
  static constexpr float kEnough = 1024;

  __aicore__ inline void Normalise(const LocalTensor<float>& to, const LocalTensor<float>& x, uint32_t count) {
    Adds(to, x, first_, count);
    VectorBarrier();
    if (!at_once_) {
      Adds(to, to, second_, count);
      VectorBarrier();
    }
  }

  GlobalTensor<T> to_;
  bool at_once_;
  float first_, second_;
};

}  // namespace npu_ce
