// SPDX-License-Identifier: Apache-2.0
// Back end for x86-64 with AVX-512 F, DQ, BW and VL.
#pragma once

#include <immintrin.h>

#include "types.h"

namespace npu_ce {

NPU_CE_INLINE FloatVec fma(FloatVec a, FloatVec b, FloatVec c) {
  return (FloatVec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

// The plain _mm512_max_ps and its like start from an undefined vector, of which GCC 12 warns.
NPU_CE_INLINE FloatVec max(FloatVec a, FloatVec b) {
  return (FloatVec)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
}

NPU_CE_INLINE bool any_greater(FloatVec a, FloatVec b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
}

NPU_CE_INLINE FloatVec widen_half(UInt16Vec bits) { return (FloatVec)_mm512_maskz_cvtph_ps(0xffff, (__m256i)bits); }

NPU_CE_INLINE UInt16Vec narrow_half(FloatVec v) {
  return (UInt16Vec)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

NPU_CE_INLINE UInt32Vec widen_bits(UInt16Vec bits) {
  return (UInt32Vec)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)bits);
}

NPU_CE_INLINE UInt16Vec narrow_bits(UInt32Vec v) { return (UInt16Vec)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v); }

}  // namespace npu_ce
