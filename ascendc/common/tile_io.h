// SPDX-License-Identifier: Apache-2.0
// Copies of tiles between GM and UB. GM addresses need no alignment, and lengths may be any (page DataCopyPad); UB
// tiles begin at multiples of 32 bytes. Arithmetic is float32 everywhere, so half and bfloat16 are cast on the way in
// and once on the way out.
#pragma once

#include "../ub/common.h"
#include "kernel_operator.h"

namespace npu_ce {

using namespace AscendC;

constexpr uint32_t kMaxRepeats = 255;  // of one vector instruction with strides

template <class T>
constexpr bool kIsFloat = sizeof(T) == sizeof(float);

__aicore__ inline uint32_t Least(uint32_t a, uint32_t b) { return a < b ? a : b; }

// For n below 2^31. By way of a signed integer: the compiler refuses every conversion between an unsigned integer and a
// float in device code ("cast between floating and unsigned integer variable is not allowed in aicore function").
__aicore__ inline float AsFloat(uint32_t n) { return static_cast<float>(static_cast<int32_t>(n)); }

// Casts by way of an integer, because a host pointer's type has no device address space.
template <class T>
__aicore__ inline GlobalTensor<T> InGm(const void* data, uint64_t elements) {
  GlobalTensor<T> tensor;
  tensor.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(reinterpret_cast<uint64_t>(data)), elements);
  return tensor;
}

// Pads blocks of `count` elements to multiples of 32 bytes with zeros. The value is the 0 that the constructor of the
// parameters sets: not every compiler converts a number to bfloat16 here. The right padding has to be given: without
// any padding the copy ignores the value, and fills up with the block's first element (page DataCopyPad, example 2).
template <class T>
__aicore__ inline DataCopyPadExtParams<T> ZeroPadding(uint32_t count) {
  DataCopyPadExtParams<T> padding;
  padding.isPad = true;
  padding.rightPadding = CeilTo(count * sizeof(T), kBlockBytes) / sizeof(T) - count;
  return padding;
}

// What follows a tile's end up to 32 bytes is 0, so that no lane is ever left undefined.
template <class T>
__aicore__ inline void CopyIn(const LocalTensor<T>& tile, const GlobalTensor<T>& from, uint32_t count) {
  DataCopyPad(tile, from, DataCopyExtParams(1, count * sizeof(T), 0, 0, 0), ZeroPadding<T>(count));
}

template <class T>
__aicore__ inline void CopyOut(const GlobalTensor<T>& to, const LocalTensor<T>& tile, uint32_t count) {
  DataCopyPad(to, tile, DataCopyExtParams(1, count * sizeof(T), 0, 0, 0));
}

// Copies `rows` rows of `count` elements, which are `stride` elements apart in GM and `pitch` apart in UB; `pitch`
// elements are a multiple of 32 bytes. It is one DMA, unless the gap between rows in GM exceeds the 32-bit parameter.
template <class T>
__aicore__ inline void CopyRowsIn(const LocalTensor<T>& tile, const GlobalTensor<T>& from, uint32_t rows,
                                  uint32_t count, uint64_t stride, uint32_t pitch) {
  const uint64_t gap = (stride - count) * sizeof(T);
  if (gap > UINT32_MAX) {
    for (uint32_t row = 0; row < rows; ++row) {
      CopyIn(tile[row * pitch], from[row * stride], count);
    }
    return;
  }
  const uint32_t ub_gap = (pitch * sizeof(T) - CeilTo(count * sizeof(T), kBlockBytes)) / kBlockBytes;
  DataCopyPad(tile, from, DataCopyExtParams(rows, count * sizeof(T), static_cast<uint32_t>(gap), ub_gap, 0),
              ZeroPadding<T>(count));
}

// The same, from UB to GM.
template <class T>
__aicore__ inline void CopyRowsOut(const GlobalTensor<T>& to, const LocalTensor<T>& tile, uint32_t rows, uint32_t count,
                                   uint64_t stride, uint32_t pitch) {
  const uint64_t gap = (stride - count) * sizeof(T);
  if (gap > UINT32_MAX) {
    for (uint32_t row = 0; row < rows; ++row) {
      CopyOut(to[row * stride], tile[row * pitch], count);
    }
    return;
  }
  const uint32_t ub_gap = (pitch * sizeof(T) - CeilTo(count * sizeof(T), kBlockBytes)) / kBlockBytes;
  DataCopyPad(to, tile, DataCopyExtParams(rows, count * sizeof(T), ub_gap, static_cast<uint32_t>(gap), 0));
}

// To rows that are contiguous in GM.
template <class T>
__aicore__ inline void CopyRowsOut(const GlobalTensor<T>& to, const LocalTensor<T>& tile, uint32_t rows, uint32_t count,
                                   uint32_t pitch) {
  CopyRowsOut(to, tile, rows, count, count, pitch);
}

// Exact, whatever T is.
template <class T>
__aicore__ inline void ToFloats(const LocalTensor<float>& floats, const LocalTensor<T>& tile, uint32_t count) {
  if constexpr (kIsFloat<T>) {
    Adds(floats, tile, 0.0f, count);
  } else {
    Cast(floats, tile, RoundMode::CAST_NONE, count);
  }
}

// Rounded to nearest, ties to even, as torch does.
template <class T>
__aicore__ inline void FromFloats(const LocalTensor<T>& tile, const LocalTensor<float>& floats, uint32_t count) {
  if constexpr (kIsFloat<T>) {
    Adds(tile, floats, 0.0f, count);
  } else {
    Cast(tile, floats, RoundMode::CAST_RINT, count);
  }
}

}  // namespace npu_ce
