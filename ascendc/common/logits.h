// SPDX-License-Identifier: Apache-2.0
// x' of the loss: logit_scale * x, or the softcap of it.
//
// With softcap a and u = logit_scale * x / a, a * tanh(u) = a + q with q = -2a / (exp(2u) + 1), which holds at both
// ends (exp becomes 0 or inf) and keeps a NaN. Its error is one rounding of a, so logits far below the cap lose
// relative digits.
#pragma once

#include "lanes.h"

namespace npu_ce {

class Logits {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem) {
    scale_ = problem.logit_scale;
    softcap_ = problem.softcap;
    if (IsCapped()) {
      pipe->InitBuffer(numerator_, NumeratorBytes(softcap_));
      Duplicate(numerator_.Get<float>(), -2 * softcap_, kBlockFloats);
      VectorBarrier();
    }
  }

  __aicore__ inline bool IsCapped() const { return softcap_ != 0; }
  __aicore__ inline float Softcap() const { return softcap_; }  // 0 where there is none

  // In place: x'.
  __aicore__ inline void Transform(const LocalTensor<float>& x, uint32_t count) {
    TransformBelowCap(x, count);
    if (IsCapped()) {
      Adds(x, x, softcap_, count);
      VectorBarrier();
    }
  }

  // In place: x' - Softcap(), the q of CappedSlope.
  __aicore__ inline void TransformBelowCap(const LocalTensor<float>& x, uint32_t count) {
    if (!IsCapped()) {
      if (scale_ != 1) {
        Muls(x, x, scale_, count);
        VectorBarrier();
      }
      return;
    }
    Muls(x, x, 2 * scale_ / softcap_, count);
    VectorBarrier();
    Exp(x, x, count);
    VectorBarrier();
    Adds(x, x, 1.0f, count);
    VectorBarrier();
    Divide(x, count);
  }

  // The slope of x' is SlopeScale(), and with a softcap SlopeScale() * q * (q + 2a): -q * (q + 2a) is a^2 (1 - tanh^2).
  __aicore__ inline float SlopeScale() const { return IsCapped() ? -scale_ / (softcap_ * softcap_) : scale_; }
  // to = q * (q + 2a). It cancels only where the cap flattens x' towards -a, where p is small.
  __aicore__ inline void CappedSlope(const LocalTensor<float>& to, const LocalTensor<float>& q, uint32_t count) const {
    Adds(to, q, 2 * softcap_, count);
    VectorBarrier();
    Mul(to, to, q, count);
    VectorBarrier();
  }

 private:
  // x = -2a / x, over whole repeats and then a tail. The numerator is one block, read with strides of 0.
  __aicore__ inline void Divide(const LocalTensor<float>& x, uint32_t count) {
    constexpr uint8_t step = kCeLanes / kBlockFloats;
    const BinaryRepeatParams strides(1, 0, 1, step, 0, step);
    const LocalTensor<float> numerator = numerator_.Get<float>();
    const uint32_t repeats = count / kCeLanes, tail = count % kCeLanes;
    for (uint32_t done = 0; done < repeats; done += kMaxRepeats) {
      const LocalTensor<float> part = x[done * kCeLanes];
      Div(part, numerator, part, kCeLanes, Least(repeats - done, kMaxRepeats), strides);
    }
    if (tail > 0) {
      const LocalTensor<float> part = x[repeats * kCeLanes];
      Div(part, numerator, part, tail, 1, strides);
    }
    VectorBarrier();
  }

  float scale_, softcap_;
  TBuf<QuePosition::VECCALC> numerator_;
};

}  // namespace npu_ce
