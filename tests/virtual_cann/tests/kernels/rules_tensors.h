// SPDX-License-Identifier: Apache-2.0
// The operands of vector instructions' rule kernels.
#pragma once

#include "rules.h"

// Four tensors of 16 KiB; the first two hold ones.
struct Tensors {
  __aicore__ inline Tensors() {
    pipe.InitBuffer(a_, kBytes);
    pipe.InitBuffer(b_, kBytes);
    pipe.InitBuffer(c_, kBytes);
    pipe.InitBuffer(d_, kBytes);
    a = a_.Get<float>();
    b = b_.Get<float>();
    c = c_.Get<float>();
    d = d_.Get<float>();
    Duplicate(a, 1.0f, kSize);
    Duplicate(b, 1.0f, kSize);
    PipeBarrier<PIPE_V>();
  }

  static constexpr uint32_t kBytes = 16384, kSize = kBytes / sizeof(float);
  TPipe pipe;
  TBuf<QuePosition::VECCALC> a_, b_, c_, d_;
  LocalTensor<float> a, b, c, d;
};
