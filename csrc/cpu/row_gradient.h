// SPDX-License-Identifier: Apache-2.0
// The inner loops of backward: the gradient of a range of columns of one row.
#pragma once

#include "class_weights.h"
#include "logits.h"

namespace npu_ce {

// dx'[c] = p[c] * (spread + entropy * logp[c]) - smooth * w[c] + grad_log_prob[c], and for c == target, where
// spread = target_grad + rest would cancel as p -> 1: target_grad * expm1(logp) in place of target_grad * p.
template <class T>
struct RowGradient {
  bool is_zero;  // nothing flows into the row, whatever its logits hold
  Acc<T> row_max;
  Acc<T> log_sum;
  double target_grad;
  double rest;
  double entropy;
  double smooth;
  int64_t target;  // -1 for an ignored row
  const T* grad_log_prob;

  double spread() const { return target_grad + rest; }
};

// exp(logp) times a factor, where the exponent of a small p may leave float's normal range before the factor brings it
// back.
template <class A>
struct ScaledExp;

template <>
struct ScaledExp<double> {
  explicit ScaledExp(double) {}
  double unscale(double factor) const { return factor; }
  DoubleVec operator()(DoubleVec x) const { return exp(x); }
};

template <>
struct ScaledExp<float> {
  // A factor below 2^-30 makes any p below 2^-126 vanish anyhow, and 2^-64 of it could be subnormal.
  explicit ScaledExp(double factor)
      : bias(std::fabs(factor) < 0x1p-30 ? 0 : 64), magic(ExpScale(bias).magic()), lowest(ExpScale(bias).lowest()) {}
  float unscale(double factor) const { return static_cast<float>(factor) * (bias == 0 ? 1.0f : 0x1p-64f); }
  FloatVec operator()(FloatVec x) const { return exp(x, magic, lowest); }
  int bias;
  FloatVec magic;
  FloatVec lowest;
};

// p * spread - smooth for columns [begin, end): all there is without softcap, entropy, smoothed weights and
// grad_log_prob.
template <class T>
void write_plain_gradient(const Logits<T>& logits, const RowGradient<T>& row, const T* from, T* to, int64_t count,
                          bool streaming) {
  using A = Acc<T>;
  const A scale = logits.scale();
  const ScaledExp<A> scaled_exp(row.spread() * scale);
  const Vec<T> spread = splat(scaled_exp.unscale(row.spread() * scale));
  const Vec<T> smooth = splat(static_cast<A>(-row.smooth * scale));
  const A row_max = row.row_max;
  const A log_sum = row.log_sum;
  write_columns(to, count, streaming, [&](int64_t at, int64_t lanes) __attribute__((always_inline)) {
    return fma(scaled_exp((load(from + at, lanes) * scale - row_max) - log_sum), spread, smooth);
  });
}

// The whole formula, except at the target.
template <class T>
void write_full_gradient(const Logits<T>& logits, const ClassWeights<Acc<T>>& weights, const RowGradient<T>& row,
                         int64_t begin, int64_t end, const T* row_from, T* row_to, bool streaming) {
  using A = Acc<T>;
  using V = Vec<T>;
  alignas(kVectorBytes) A values[kBlockElems];
  alignas(kVectorBytes) A slopes[kBlockElems];
  const double largest = std::fabs(row.spread()) + std::fabs(row.entropy);
  const ScaledExp<A> scaled_exp(largest);
  const V spread = splat(scaled_exp.unscale(row.spread()));
  const V entropy = splat(scaled_exp.unscale(row.entropy));
  const V smooth = splat(static_cast<A>(row.smooth));
  const V lowest = splat(std::numeric_limits<A>::lowest());
  const bool has_entropy = row.entropy != 0;
  for_each_block(begin, end, [&](int64_t column, int64_t count) {
    logits.stage(row_from + column, count, values, slopes);
    const A* weight = row.smooth == 0 ? nullptr : weights.from(column);
    const T* grad_log_prob = row.grad_log_prob == nullptr ? nullptr : row.grad_log_prob + column;
    write_columns(row_to + column, count, streaming, [&](int64_t at, int64_t lanes) __attribute__((always_inline)) {
      const V log_prob = (load(values + at, lanes) - row.row_max) - row.log_sum;
      const V factor = has_entropy ? fma(entropy, max(log_prob, lowest), spread) : spread;
      V gradient = fma(scaled_exp(log_prob), factor, weight == nullptr ? -smooth : -smooth * load(weight + at, lanes));
      if (grad_log_prob != nullptr) gradient += load(grad_log_prob + at, lanes);
      return gradient * load(slopes + at, lanes);
    });
  });
}

template <class T>
T target_gradient(const Logits<T>& logits, const ClassWeights<Acc<T>>& weights, const RowGradient<T>& row,
                  const T* from) {
  const auto element = logits.element(from + row.target);
  const double log_prob = (element.value - row.row_max) - row.log_sum;
  double gradient = row.target_grad * std::expm1(log_prob) + std::exp(log_prob) * row.rest;
  if (row.entropy != 0) {
    gradient += std::exp(log_prob) * row.entropy * std::max<double>(log_prob, std::numeric_limits<Acc<T>>::lowest());
  }
  if (row.smooth != 0) gradient -= row.smooth * weights.at(row.target);
  if (row.grad_log_prob != nullptr) gradient += to_acc(row.grad_log_prob[row.target]);
  return from_acc<T>(static_cast<Acc<T>>(gradient * element.slope));
}

}  // namespace npu_ce
