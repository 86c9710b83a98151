// SPDX-License-Identifier: Apache-2.0
// log_prob of a tile of one row: (x' - max) - log_sum.
#pragma once

#include "ce_lanes.h"

namespace npu_ce {

template <class T>
class WideLogProb {
 public:
  // `in_place`: Write has no buffers, WriteInPlace has an event for each tile of a row.
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, void* log_prob, uint32_t columns, bool in_place) {
    to_ = InGm<T>(log_prob, problem.rows * problem.classes);
    if (!in_place) {
      pipe->InitBuffer(out_, 2, columns * sizeof(T));
      return;
    }
    for (int32_t& event : written_) {
      event = pipe->AllocEventID<HardEvent::MTE3_V>();
    }
  }

  __aicore__ inline void Close(TPipe* pipe) {
    for (int32_t event : written_) {
      pipe->ReleaseEventID<HardEvent::MTE3_V>(event);
    }
  }

  // Two subtractions keep the digits of a small log_sum beside a large max. Where lse has less than 2^10 times the
  // magnitude of log_sum, which no log_prob of the row is below, half and bfloat16 cannot tell them from one.
  __aicore__ inline void SetRow(float max, float log_sum) {
    const float lse = max + log_sum, magnitude = lse < 0 ? -lse : lse;
    at_once_ = !kIsFloat<T> && log_sum * kEnough >= magnitude;
    first_ = at_once_ ? -lse : -max;
    second_ = -log_sum;
  }

  // `at` is the place in log_prob. Half and bfloat16 overwrite x.
  __aicore__ inline void Write(const LocalTensor<float>& x, uint64_t at, uint32_t count) {
    LocalTensor<T> out = out_.template AllocTensor<T>();
    if constexpr (kIsFloat<T>) {
      Normalise(out, x, count);
    } else {
      Normalise(x, x, count);
      FromFloats(out, x, count);
    }
    out_.EnQue(out);
    out = out_.template DeQue<T>();
    CopyOut(to_[at], out, count);
    out_.FreeTensor(out);
  }

  // Tile `index` of a row, whose buffer is not free before Await.
  __aicore__ inline void WriteInPlace(uint32_t index, const LocalTensor<float>& x, uint64_t at, uint32_t count) {
    Normalise(x, x, count);
    Order<HardEvent::V_MTE3>();
    CopyOut(to_[at], x, count);
    SetFlag<HardEvent::MTE3_V>(written_[index]);
  }
  __aicore__ inline void Await(uint32_t index) { WaitFlag<HardEvent::MTE3_V>(written_[index]); }

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
  TQue<QuePosition::VECOUT, 1> out_;
  int32_t written_[kCeInputTiles];
  bool at_once_;
  float first_, second_;
};

}  // namespace npu_ce
