// SPDX-License-Identifier: Apache-2.0
// The softcap as backward takes it: x' is q + cap, and the slope of x' is a product with q.
#pragma once

#include "ce_lanes.h"

namespace npu_ce {

class CappedLogits {
 public:
  __aicore__ inline void Init(TPipe* pipe, float cap, float scale) {
    twice_cap_ = 2 * cap;
    exponent_ = 2 * scale / cap;
    pipe->InitBuffer(numerator_, kBlockBytes);
    Duplicate(numerator_.Get<float>(), -twice_cap_, kBlockFloats);
    VectorBarrier();
  }

  // In place: q = -2 cap / (exp(2 u) + 1) with u = scale * x / cap, so that cap * tanh(u) = q + cap. Over whole
  // repeats. Both ends hold: exp becomes 0 or inf, and q is -2 cap or 0.
  __aicore__ inline void Apply(const LocalTensor<float>& x, uint32_t count) {
    Muls(x, x, exponent_, count);
    VectorBarrier();
    Exp(x, x, count);
    VectorBarrier();
    Adds(x, x, 1.0f, count);
    VectorBarrier();
    constexpr uint8_t step = kCeLanes / kBlockFloats;
    const LocalTensor<float> numerator = numerator_.Get<float>();
    for (uint32_t done = 0, repeats = Repeats(count); done < repeats; done += kMaxRepeats) {
      const LocalTensor<float> part = x[done * kCeLanes];
      Div(part, numerator, part, kCeLanes, Least(repeats - done, kMaxRepeats),
          BinaryRepeatParams(1, 0, 1, step, 0, step));
    }
    VectorBarrier();
  }

  // to = q * (q + 2 cap) = -cap^2 (1 - tanh^2). No digits are lost where the cap bites upwards, which is where p is not
  // small.
  __aicore__ inline void Slope(const LocalTensor<float>& to, const LocalTensor<float>& q, uint32_t count) {
    Adds(to, q, twice_cap_, count);
    VectorBarrier();
    Mul(to, to, q, count);
    VectorBarrier();
  }

 private:
  float twice_cap_;
  float exponent_;
  TBuf<QuePosition::VECCALC> numerator_;
};

}  // namespace npu_ce
