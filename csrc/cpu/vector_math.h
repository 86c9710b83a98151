// SPDX-License-Identifier: Apache-2.0
// exp and tanh on whole vectors, with a relative error near 1e-7. float64 goes lane by lane through libm: it exists so
// that numerical gradient checks exercise the real kernels, and nobody waits for it.
#pragma once

#include <cmath>

#include "simd.h"

namespace npu_ce {

// exp of anything lower is 0 in every dtype. Logits of -inf are raised to it where exp(x) is multiplied by x, as 0 *
// -inf is NaN, and the lowest number times a gradient may be -inf again.
constexpr double kLowestExponent = -1e4;

// Adding 1.5 * 2^23 rounds to an integer n in the low mantissa bits. Adding the exponent's offset with it makes these
// bits, shifted up, the float 2^(n + bias).
template <class V>
NPU_CE_INLINE V exp_magic(V bias) {
  return bias + (12582912.0f + 127.0f);
}
// Below it, 2^(n + bias) leaves the normal range.
template <class V>
NPU_CE_INLINE V exp_lowest(V bias) {
  return (bias + 126.0f) * -0.69314718f;
}

// exp(x) * 2^bias for x < 88 - bias * ln 2, and 0 for x < lowest. The power of two is multiplied in, not added to the
// exponent's bits, as a NaN's payload could carry that sum out of NaN.
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

NPU_CE_INLINE FloatVec exp(FloatVec x) { return exp(x, splat(exp_magic(0.0f)), splat(exp_lowest(0.0f))); }

NPU_CE_NOINLINE inline DoubleVec exp(DoubleVec x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}

// exp(x) for a product with a factor: operator() gives exp(x) * 2^64 and unscaled() the factor * 2^-64, so that the
// product is rounded once and has float's whole range, subnormals included, though exp(x) alone would flush to 0 below
// 2^-126.
template <class V>
struct ScaledExp;

template <>
struct ScaledExp<FloatVec> {
  // With a factor below 2^-30 the product of such an exp(x) vanishes anyhow, and factor * 2^-64 could be subnormal
  // itself.
  NPU_CE_INLINE explicit ScaledExp(FloatVec factor)
      : bias((FloatVec)((UInt32Vec)factor & 0x7fffffffu) < 0x1p-30f ? FloatVec{} : splat(64.0f)),
        magic(exp_magic(bias)),
        lowest(exp_lowest(bias)) {}
  NPU_CE_INLINE FloatVec unscaled(FloatVec factor) const {
    return factor * (bias == 0.0f ? splat(1.0f) : splat(0x1p-64f));
  }
  NPU_CE_INLINE FloatVec operator()(FloatVec x) const { return exp(x, magic, lowest); }
  FloatVec bias;
  FloatVec magic;
  FloatVec lowest;
};

template <>
struct ScaledExp<DoubleVec> {
  explicit ScaledExp(DoubleVec) {}
  DoubleVec unscaled(DoubleVec factor) const { return factor; }
  DoubleVec operator()(DoubleVec x) const { return exp(x); }
};

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

NPU_CE_NOINLINE inline Tanh<DoubleVec> tanh(DoubleVec x) {
  Tanh<DoubleVec> result;
  for (int lane = 0; lane < kLanes<double>; ++lane) {
    const double e = std::exp(-2 * std::fabs(x[lane]));
    result.value[lane] = std::tanh(x[lane]);
    result.slope[lane] = 4 * e / ((1 + e) * (1 + e));
  }
  return result;
}

}  // namespace npu_ce
