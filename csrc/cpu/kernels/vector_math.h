// SPDX-License-Identifier: Apache-2.0
// exp and tanh on whole vectors, with a relative error near 2e-7, or 3e-6 where the result is stored in two bytes.
// float64 goes lane by lane through libm: it exists so that numerical gradient checks exercise the real kernels.
#pragma once

#include <cmath>

#include "simd/ops.h"

namespace npu_ce {

// exp of anything lower is 0 in every dtype. Logits of -inf are raised to it where exp(x) is multiplied by x, as 0 *
// -inf is NaN, and the lowest number times a gradient may be -inf again.
constexpr double kLowestExponent = -1e4;

// Coefficients of 2^f for |f| <= 1/2, the constant first, which is exactly 1. Minimax in the relative error: 3e-6 and
// 1e-7. Degree 3, with 1e-4, would show in bfloat16 gradients.
template <int kDegree>
struct Exp2;
template <>
struct Exp2<4> {
  static constexpr float kCoefficients[] = {1, 6.93124175e-1f, 2.40241021e-1f, 5.59068173e-2f, 9.58281476e-3f};
};
template <>
struct Exp2<5> {
  static constexpr float kCoefficients[] = {
      1, 6.93147004e-1f, 2.40222409e-1f, 5.55073433e-2f, 9.67156608e-3f, 1.32646586e-3f};
};

// Adding 1.5 * 2^23 rounds to an integer n in the low mantissa bits. Adding the exponent's offset with it makes these
// bits, shifted up, the float 2^(n + bias).
template <class V>
NPU_CE_INLINE V exp_magic(V bias) {
  return bias + (12582912.0f + 127.0f);
}
// The x at which the bits of 2^(n + bias) are all 0.
template <class V>
NPU_CE_INLINE V exp_lowest(V bias) {
  return (bias + 127.0f) * -0.69314718f;
}

// exp(x) * 2^bias + addend for x < 88 - bias * ln 2, with coefficients of 2^f. exp is 0 from `lowest` down. The power
// of two is multiplied in, not added to the exponent's bits, as a NaN's payload could carry that sum out of NaN.
template <int kDegree>
NPU_CE_INLINE FloatVec add_exp(FloatVec x, const FloatVec (&coefficients)[kDegree + 1], FloatVec magic, FloatVec lowest,
                               FloatVec addend) {
  const FloatVec log2e = splat(1.44269504f);
  const FloatVec raised = max(lowest, x);
  const FloatVec shifted = fma(raised, log2e, magic);
  const FloatVec fraction = fma(raised, log2e, magic - shifted);
  FloatVec p = coefficients[kDegree];
  NPU_CE_UNROLL
  for (int i = kDegree - 1; i >= 0; --i) p = fma(p, fraction, coefficients[i]);
  return fma(p, (FloatVec)((Int32Vec)shifted << 23), addend);
}

// addend + exp(x).
NPU_CE_INLINE FloatVec add_exp(FloatVec x, FloatVec addend) {
  constexpr int kDegree = 5;
  FloatVec coefficients[kDegree + 1];
  NPU_CE_UNROLL
  for (int i = 0; i <= kDegree; ++i) coefficients[i] = splat(Exp2<kDegree>::kCoefficients[i]);
  return add_exp<kDegree>(x, coefficients, splat(exp_magic(0.0f)), splat(exp_lowest(0.0f)), addend);
}

NPU_CE_INLINE FloatVec exp(FloatVec x) { return add_exp(x, FloatVec{}); }

NPU_CE_NOINLINE inline DoubleVec exp(DoubleVec x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}
NPU_CE_INLINE DoubleVec add_exp(DoubleVec x, DoubleVec addend) { return exp(x) + addend; }

// exp(x) - 1 for x <= 0, with the digits of a small x.
NPU_CE_INLINE FloatVec expm1(FloatVec x) {
  constexpr int kDegree = 5;
  const FloatVec log2e = splat(1.44269504f);
  const FloatVec magic = splat(exp_magic(0.0f));
  const FloatVec raised = max(splat(exp_lowest(0.0f)), x);
  const FloatVec shifted = fma(raised, log2e, magic);
  const FloatVec fraction = fma(raised, log2e, magic - shifted);
  FloatVec p = splat(Exp2<kDegree>::kCoefficients[kDegree]);
  NPU_CE_UNROLL
  for (int i = kDegree - 1; i > 0; --i) p = fma(p, fraction, splat(Exp2<kDegree>::kCoefficients[i]));
  const FloatVec power = (FloatVec)((Int32Vec)shifted << 23);
  return fma(p * fraction, power, power - 1.0f);
}

NPU_CE_NOINLINE inline DoubleVec expm1(DoubleVec x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::expm1(x[lane]);
  return x;
}

// Natural logarithm of a finite x >= 1, or NaN of a NaN, to a few units in the last place: a lane of it costs a tenth
// of a call of libm's.
NPU_CE_INLINE DoubleVec log(DoubleVec x) {
  constexpr uint64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  const UInt64Vec exponent = ((UInt64Vec)x - kSqrtHalf) >> 52;
  const DoubleVec mantissa = (DoubleVec)((UInt64Vec)x - (exponent << 52));  // between sqrt(1/2) and sqrt(2)
  // log(m) = 2 atanh(s) = 2 (s + s^3 / 3 + s^5 / 5 + ...).
  constexpr double kReciprocals[] = {1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13,
                                     1.0 / 11, 1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3};
  const DoubleVec s = (mantissa - 1.0) / (mantissa + 1.0);
  const DoubleVec square = s * s;
  DoubleVec series{};
  for (const double reciprocal : kReciprocals) series = fma(series, square, splat(reciprocal));
  series = fma(series * square, s, s) * 2.0;
  // An integer below 2^52 in the low bits of 2^52 is the double 2^52 + integer.
  const DoubleVec whole = (DoubleVec)(exponent | 0x4330000000000000u) - 0x1p52;
  return fma(whole, splat(0.69314718055994531), series) + x * 0.0;
}

// The logarithm of whole + rest + error, `whole` being 0 or at least 1, with the digits of a small rest beside a 1.
NPU_CE_INLINE FloatVec log_of_sum(FloatVec whole, FloatVec rest, FloatVec error) {
  const FloatVec sum = whole + rest;
  const FloatVec added = sum - whole;
  const FloatVec rounded_off = (whole - (sum - added)) + (rest - added) + error;
  // sum = 2^exponent * m, m between sqrt(1/2) and sqrt(2).
  const Int32Vec exponent = ((Int32Vec)sum - 0x3f3504f3) >> 23;
  const FloatVec mantissa = (FloatVec)((Int32Vec)sum - (exponent << 23));
  const FloatVec x = (mantissa - 1.0f) + rounded_off * (FloatVec)((127 - exponent) << 23);
  // log(1 + x) = x - x^2 / 2 + x^3 * (1/3 - ...), minimax in the relative error: 6e-8.
  constexpr float kCoefficients[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                                     -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                                     2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  FloatVec p = splat(kCoefficients[0]);
  NPU_CE_UNROLL
  for (int i = 1; i < 9; ++i) p = fma(p, x, splat(kCoefficients[i]));
  const FloatVec square = x * x;
  const FloatVec whole_power = __builtin_convertvector(exponent, FloatVec);
  // ln 2 in two parts, the first with few enough digits for an exact product.
  FloatVec tail = fma(p * x, square, whole_power * -2.12194440e-4f);
  tail = fma(square, splat(-0.5f), tail);
  return fma(whole_power, splat(0.693359375f), x + tail);
}
NPU_CE_INLINE DoubleVec log_of_sum(DoubleVec whole, DoubleVec rest, DoubleVec error) {
  return log(whole + (rest + error));
}

// factor * exp(x) + addend, rounded once and with float's whole range, subnormals included, though exp(x) alone would
// flush to 0 below 2^-126. What is stored as T needs no more digits of exp than T has, and few more than that.
template <class T>
class TimesExp {
 public:
  // With a factor below 2^-30 the product of an exp(x) below 2^-126 vanishes anyhow, and factor * 2^-64 could be
  // subnormal itself.
  NPU_CE_INLINE explicit TimesExp(FloatVec factor) {
    const FloatVec bias = (FloatVec)((UInt32Vec)factor & 0x7fffffffu) < 0x1p-30f ? FloatVec{} : splat(64.0f);
    factor *= bias == 0.0f ? splat(1.0f) : splat(0x1p-64f);
    NPU_CE_UNROLL
    for (int i = 0; i <= kDegree; ++i) coefficients_[i] = factor * Exp2<kDegree>::kCoefficients[i];
    magic_ = exp_magic(bias);
    lowest_ = exp_lowest(bias);
  }
  NPU_CE_INLINE FloatVec operator()(FloatVec x, FloatVec addend) const {
    return add_exp<kDegree>(x, coefficients_, magic_, lowest_, addend);
  }

 private:
  static constexpr int kDegree = sizeof(T) == 2 ? 4 : 5;
  FloatVec coefficients_[kDegree + 1];
  FloatVec magic_;
  FloatVec lowest_;
};

template <>
class TimesExp<double> {
 public:
  explicit TimesExp(DoubleVec factor) : factor_(factor) {}
  DoubleVec operator()(DoubleVec x, DoubleVec addend) const { return factor_ * exp(x) + addend; }

 private:
  DoubleVec factor_;
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
