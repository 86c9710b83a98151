// SPDX-License-Identifier: Apache-2.0
// Kernels that call one vector API on `n` elements. The sources a and b and the result have 16 KiB of UB each.
#pragma once

#include "kernel_operator.h"

using namespace AscendC;

constexpr uint32_t kApiBytes = 16384;

template <HardEvent event>
__aicore__ inline void Wait() {
  const TEventID id = GetTPipePtr()->FetchEventID(event);
  SetFlag<event>(id);
  WaitFlag<event>(id);
}

template <class To, class From>
class Api {
 public:
  // Copies n elements of a and b in. The elements behind them are zero.
  __aicore__ inline Api(GM_ADDR a_gm, GM_ADDR b_gm, GM_ADDR result_gm, uint32_t n) : n(n) {
    result_.SetGlobalBuffer((__gm__ To*)result_gm);
    pipe.InitBuffer(buffers_, 4 * kApiBytes);
    a = buffers_.GetWithOffset<From>(kApiBytes / sizeof(From), 0);
    b = buffers_.GetWithOffset<From>(kApiBytes / sizeof(From), kApiBytes);
    result = buffers_.GetWithOffset<To>(kApiBytes / sizeof(To), 2 * kApiBytes);
    work = buffers_.GetWithOffset<From>(kApiBytes / sizeof(From), 3 * kApiBytes);
    Load(a, a_gm);
    Load(b, b_gm);
    Wait<HardEvent::MTE2_V>();
  }

  __aicore__ inline void Store(uint32_t count) {
    Wait<HardEvent::V_MTE3>();
    const uint32_t bytes = count * sizeof(To);
    DataCopyPad(result_, result, DataCopyExtParams(1, bytes, 0, 0, 0));
  }

  TPipe pipe;
  LocalTensor<From> a, b, work;
  LocalTensor<To> result;
  uint32_t n;

 private:
  __aicore__ inline void Load(const LocalTensor<From>& tensor, GM_ADDR gm) {
    GlobalTensor<From> source;
    source.SetGlobalBuffer((__gm__ From*)gm, n);
    const uint32_t bytes = n * sizeof(From), behind = (32 - bytes % 32) % 32 / sizeof(From);
    DataCopyPad(tensor, source, DataCopyExtParams(1, bytes, 0, 0, 0),
                DataCopyPadExtParams<From>(true, 0, behind, From(0)));
  }

  TBuf<QuePosition::VECCALC> buffers_;
  GlobalTensor<To> result_;
};

// Defines the kernel `name` and its launcher. `body` fills api.result, of which `stored` elements are copied out.
#define API_KERNEL(name, To, From, stored, body)                                                 \
  extern "C" __global__ __aicore__ void name(GM_ADDR a, GM_ADDR b, GM_ADDR result, uint32_t n) { \
    Api<To, From> api(a, b, result, n);                                                          \
    body;                                                                                        \
    api.Store(stored);                                                                           \
  }                                                                                              \
  extern "C" void launch_##name(void* stream, void* a, void* b, void* result, uint32_t n) {      \
    name<<<1, nullptr, stream>>>((GM_ADDR)a, (GM_ADDR)b, (GM_ADDR)result, n);                    \
  }
