// SPDX-License-Identifier: Apache-2.0
// What all kernels of this folder need: the declaration, waits of one pipe for another, copies of whole blocks.
#pragma once

#include "kernel_operator.h"

#ifndef NPU_CE_VECTOR
#define NPU_CE_VECTOR
#endif

namespace npu_ce_board {

using namespace AscendC;

constexpr uint32_t kBlockBytes = 32;

template <class T>
__aicore__ inline GlobalTensor<T> InGm(GM_ADDR data, uint64_t elements) {
  GlobalTensor<T> tensor;
  tensor.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(data), elements);
  return tensor;
}

// One pipe waits for everything that has been issued to another.
template <HardEvent event>
__aicore__ inline void Order() {
  const int32_t id = GetTPipePtr()->FetchEventID(event);
  SetFlag<event>(id);
  WaitFlag<event>(id);
}

__aicore__ inline void VectorBarrier() { PipeBarrier<PIPE_V>(); }

// `count` elements are whole blocks, so that nothing depends on padding.
template <class T>
__aicore__ inline void CopyIn(const LocalTensor<T>& to, const GlobalTensor<T>& from, uint32_t count) {
  DataCopyPad(to, from, DataCopyExtParams(1, count * sizeof(T), 0, 0, 0), DataCopyPadExtParams<T>());
}

template <class T>
__aicore__ inline void CopyOut(const GlobalTensor<T>& to, const LocalTensor<T>& from, uint32_t count) {
  DataCopyPad(to, from, DataCopyExtParams(1, count * sizeof(T), 0, 0, 0));
}

}  // namespace npu_ce_board
