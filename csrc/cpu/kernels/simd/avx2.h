// SPDX-License-Identifier: Apache-2.0
// Back end for x86-64 with AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "types.h"

namespace npu_ce {

NPU_CE_INLINE FloatVec fma(FloatVec a, FloatVec b, FloatVec c) {
  return (FloatVec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

NPU_CE_INLINE FloatVec max(FloatVec a, FloatVec b) { return (FloatVec)_mm256_max_ps((__m256)a, (__m256)b); }

NPU_CE_INLINE bool any_greater(FloatVec a, FloatVec b) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)) != 0;
}

NPU_CE_INLINE FloatVec widen_half(UInt16Vec bits) { return (FloatVec)_mm256_cvtph_ps((__m128i)bits); }

NPU_CE_INLINE UInt16Vec narrow_half(FloatVec v) {
  return (UInt16Vec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// GCC 12 takes __builtin_convertvector apart into two halves.
NPU_CE_INLINE UInt32Vec widen_bits(UInt16Vec bits) { return (UInt32Vec)_mm256_cvtepu16_epi32((__m128i)bits); }

NPU_CE_INLINE UInt16Vec narrow_bits(UInt32Vec v) {
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  return (UInt16Vec)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

}  // namespace npu_ce
