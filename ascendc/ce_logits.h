// SPDX-License-Identifier: Apache-2.0
// x' of the loss: logit_scale * x, or the softcap of it.
#pragma once

#include "ce_lanes.h"

namespace npu_ce {

class Logits {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem) {
    scale_ = problem.logit_scale;
    softcap_ = problem.softcap;
    if (softcap_ != 0) {
      pipe->InitBuffer(numerator_, kBlockBytes);
      Duplicate(numerator_.Get<float>(), -2 * softcap_, kBlockFloats);
      VectorBarrier();
    }
  }

  // In place. With softcap a: a * tanh(u) = a - 2a / (exp(2u) + 1) with u = scale * x / a, which holds at both ends
  // (exp becomes 0 or inf) and keeps a NaN. Its error is that of a rounding of a, so small logits lose digits beside
  // it.
  __aicore__ inline void Transform(const LocalTensor<float>& x, uint32_t count) {
    if (softcap_ == 0) {
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
    Adds(x, x, softcap_, count);
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
