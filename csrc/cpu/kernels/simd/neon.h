// SPDX-License-Identifier: Apache-2.0
// Back end for aarch64.
#pragma once

#include <arm_neon.h>

#include "types.h"

namespace npu_ce {

NPU_CE_INLINE FloatVec fma(FloatVec a, FloatVec b, FloatVec c) {
  return (FloatVec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

// vmaxq_f32 would give NaN where either is NaN; the other back ends give b, and the kernels rely on that.
NPU_CE_INLINE FloatVec max(FloatVec a, FloatVec b) { return a > b ? a : b; }

NPU_CE_INLINE bool any_greater(FloatVec a, FloatVec b) {
  return vmaxvq_u32(vcgtq_f32((float32x4_t)a, (float32x4_t)b)) != 0;
}

NPU_CE_INLINE FloatVec widen_half(UInt16Vec bits) {
  return (FloatVec)vcvt_f32_f16(vreinterpret_f16_u16((uint16x4_t)bits));
}

NPU_CE_INLINE UInt16Vec narrow_half(FloatVec v) {
  return (UInt16Vec)vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v));
}

NPU_CE_INLINE UInt32Vec widen_bits(UInt16Vec bits) { return (UInt32Vec)vmovl_u16((uint16x4_t)bits); }

NPU_CE_INLINE UInt16Vec narrow_bits(UInt32Vec v) { return (UInt16Vec)vmovn_u32((uint32x4_t)v); }

}  // namespace npu_ce
