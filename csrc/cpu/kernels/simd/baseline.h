// SPDX-License-Identifier: Apache-2.0
// Back end for any compiler with vector extensions and no flags: the slow one.
#pragma once

#include <cstring>

#include "types.h"

namespace npu_ce {

NPU_CE_INLINE FloatVec fma(FloatVec a, FloatVec b, FloatVec c) { return a * b + c; }

NPU_CE_INLINE FloatVec max(FloatVec a, FloatVec b) { return a > b ? a : b; }

NPU_CE_INLINE bool any_greater(FloatVec a, FloatVec b) {
  const Int32Vec mask = a > b;
  uint64_t parts[2];
  static_assert(sizeof(parts) == sizeof(mask), "the baseline's vectors have 16 bytes");
  std::memcpy(parts, &mask, sizeof(mask));
  return (parts[0] | parts[1]) != 0;
}

NPU_CE_INLINE FloatVec widen_half(UInt16Vec bits) {
  const UInt32Vec half = __builtin_convertvector(bits, UInt32Vec);
  // Moving exponent and mantissa up leaves the value 2^112 too small, for subnormals too.
  const FloatVec scaled = (FloatVec)((half & 0x7fffu) << 13) * 0x1p112f;
  const UInt32Vec inf_or_nan = (UInt32Vec)((half & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (FloatVec)((UInt32Vec)scaled | inf_or_nan | ((half & 0x8000u) << 16));
}

NPU_CE_INLINE UInt16Vec narrow_half(FloatVec v) {
  const UInt32Vec bits = (UInt32Vec)v;
  const UInt32Vec magnitude = bits & 0x7fffffffu;
  const UInt32Vec odd = (magnitude >> 13) & 1u;
  UInt32Vec half = (magnitude - 0x38000000u + 0xfffu + odd) >> 13;
  // 0.5 has the spacing of half subnormals, so the float addition itself rounds to nearest even.
  const UInt32Vec subnormal = (UInt32Vec)((FloatVec)magnitude + 0.5f) - 0x3f000000u;
  half = magnitude < 0x38800000u ? subnormal : half;
  half = magnitude >= 0x47800000u ? (UInt32Vec){} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? (UInt32Vec){} + 0x7e00u : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), UInt16Vec);
}

NPU_CE_INLINE UInt32Vec widen_bits(UInt16Vec bits) { return __builtin_convertvector(bits, UInt32Vec); }

NPU_CE_INLINE UInt16Vec narrow_bits(UInt32Vec v) { return __builtin_convertvector(v, UInt16Vec); }

}  // namespace npu_ce
