// SPDX-License-Identifier: Apache-2.0
// The float32 form of the wide layout's tiles, which half dtypes need a buffer for. What an instruction reads and what
// it writes should lie in different thirds of the UB, which have banks of their own: so tiles as they are read, their
// floats and the work of their folds begin in a third each. Where there is no room for that, the floats come last, so
// that at least the vectors of the group lie between them and the rest.
#pragma once

#include "../common/lanes.h"
#include "../ub/forward.h"

namespace npu_ce {

template <class T>
class WideFloats {
 public:
  // Behind the input's tiles, and before the work.
  __aicore__ inline void InitBetween(TPipe* pipe, const CeForwardTiling& tiling, const WideBytes& bytes) {
    if (tiling.apart == 0) {
      return;
    }
    uint32_t end = tiling.input_tiles * bytes.in;
    if constexpr (!kIsFloat<T>) {
      SkipTo(pipe, before_floats_, end, kCeUbThird);
      pipe->InitBuffer(floats_, bytes.floats);
      end = kCeUbThird + bytes.floats;
    }
    SkipTo(pipe, before_work_, end, 2 * kCeUbThird);
  }
  __aicore__ inline void InitLast(TPipe* pipe, const CeForwardTiling& tiling, const WideBytes& bytes) {
    if (!kIsFloat<T> && tiling.apart == 0) {
      pipe->InitBuffer(floats_, bytes.floats);
    }
  }

  // The tile in float32, where it may be worked on in place.
  __aicore__ inline LocalTensor<float> Of(const LocalTensor<T>& tile, uint32_t count) {
    if constexpr (kIsFloat<T>) {
      return tile;
    } else {
      ToFloats(floats_.Get<float>(), tile, count);
      VectorBarrier();
      return floats_.Get<float>();
    }
  }

 private:
  __aicore__ inline void SkipTo(TPipe* pipe, TBuf<QuePosition::VECCALC>& gap, uint32_t from, uint32_t to) {
    if (from < to) {
      pipe->InitBuffer(gap, to - from);
    }
  }

  TBuf<QuePosition::VECIN> floats_;  // copies within UB go from VECIN to VECCALC (page DataCopy)
  TBuf<QuePosition::VECCALC> before_floats_, before_work_;
};

}  // namespace npu_ce
