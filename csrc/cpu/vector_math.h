// SPDX-License-Identifier: Apache-2.0
// exp and tanh on whole vectors, with a relative error near 1e-7. float64 goes lane by lane through libm: it exists so
// that numerical gradient checks exercise the real kernels, and nobody waits for it.
#pragma once

#include <cmath>

#include "simd.h"

namespace npu_ce {

// exp(x) * 2^bias, for results from 2^-126 to 2^127; below that it is 0. A bias lets a caller multiply by a factor that
// carries 2^-bias, so that the product is rounded once and keeps float's whole range, subnormals included.
struct ExpScale {
  explicit ExpScale(int bias) : bias(bias) {}
  // Adding 1.5 * 2^23 rounds to an integer in the low mantissa bits; adding the exponent's offset there makes them,
  // shifted up, the bits of 2^(n + bias).
  FloatVec magic() const { return splat(12582912.0f + 127.0f + static_cast<float>(bias)); }
  FloatVec lowest() const { return splat(-0.69314718f * (126.0f + static_cast<float>(bias))); }
  int bias;
};

// x must be below 88 - bias * ln 2. The scale is multiplied in rather than added to the exponent's bits, as a NaN's
// payload could carry it out of NaN.
NPU_CE_INLINE FloatVec exp(FloatVec x, FloatVec magic, FloatVec lowest) {
  const FloatVec shifted = fma(x, splat(1.44269504f), magic);
  const FloatVec n = shifted - magic;
  FloatVec r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  FloatVec p = splat(1.3814467238e-3f);
  p = fma(p, r, splat(8.3687808365e-3f));
  p = fma(p, r, splat(4.1668392718e-2f));
  p = fma(p, r, splat(1.6666519642e-1f));
  p = fma(p, r, splat(4.9999994040e-1f));
  p = fma(p, r * r, r) + 1.0f;
  p *= (FloatVec)((Int32Vec)shifted << 23);
  return (FloatVec)((Int32Vec)p & ~(x < lowest));
}

NPU_CE_INLINE FloatVec exp(FloatVec x) {
  const ExpScale scale(0);
  return exp(x, scale.magic(), scale.lowest());
}

inline DoubleVec exp(DoubleVec x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}

template <class V>
struct Tanh {
  V value;
  V slope;  // 1 - tanh^2, accurate also where tanh rounds to 1
};

NPU_CE_INLINE Tanh<FloatVec> tanh(FloatVec x) {
  const FloatVec magnitude = (FloatVec)((UInt32Vec)x & 0x7fffffffu);
  const FloatVec e = exp(magnitude * -2.0f);
  const FloatVec inverse = 1.0f / (1.0f + e);
  const FloatVec large = fma(e * -2.0f, inverse, splat(1.0f));
  // 1 - 2 e / (1 + e) cancels for a small x.
  const FloatVec square = x * x;
  FloatVec q = splat(-6.2742396258e-3f);
  q = fma(q, square, splat(2.1071679890e-2f));
  q = fma(q, square, splat(-5.3852308542e-2f));
  q = fma(q, square, splat(1.3332585990e-1f));
  q = fma(q, square, splat(-3.3333316445e-1f));
  const FloatVec small = fma(q * square, x, x);
  const FloatVec signed_large = (FloatVec)((UInt32Vec)large | ((UInt32Vec)x & 0x80000000u));
  return {magnitude < 0.55f ? small : signed_large, 4.0f * e * inverse * inverse};
}

inline Tanh<DoubleVec> tanh(DoubleVec x) {
  Tanh<DoubleVec> result;
  for (int lane = 0; lane < kLanes<double>; ++lane) {
    const double e = std::exp(-2 * std::fabs(x[lane]));
    result.value[lane] = std::tanh(x[lane]);
    result.slope[lane] = 4 * e / ((1 + e) * (1 + e));
  }
  return result;
}

}  // namespace npu_ce
