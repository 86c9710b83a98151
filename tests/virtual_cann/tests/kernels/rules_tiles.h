// SPDX-License-Identifier: Apache-2.0
// The operands of most rule kernels: two tiles of n floats in UB, and all of x and y.
#pragma once

#include "rules.h"

constexpr uint32_t kAllocated = 16384;  // floats of x, and as many of y

struct Tiles {
  __aicore__ inline Tiles(TPipe* pipe, GM_ADDR x, GM_ADDR y, uint32_t n) {
    pipe->InitBuffer(buffer, 2 * n * sizeof(float));
    a = buffer.GetWithOffset<float>(n, 0);
    b = buffer.GetWithOffset<float>(n, n * sizeof(float));
    from.SetGlobalBuffer((__gm__ float*)x, kAllocated);
    to.SetGlobalBuffer((__gm__ float*)y, kAllocated);
  }

  TBuf<QuePosition::VECCALC> buffer;
  LocalTensor<float> a, b;
  GlobalTensor<float> from, to;
};

template <HardEvent event>
__aicore__ inline void Wait() {
  const TEventID id = GetTPipePtr()->FetchEventID(event);
  SetFlag<event>(id);
  WaitFlag<event>(id);
}
