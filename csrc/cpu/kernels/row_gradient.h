// SPDX-License-Identifier: Apache-2.0
// The inner loops of backward: the gradient of a range of columns of one row.
#pragma once

#include "class_weights.h"
#include "logits.h"
#include "small_rows.h"

namespace npu_ce {

// dx'[c] = p[c] * (spread + entropy * logp[c]) - smooth * w[c] + grad_log_prob[c], and for c == target, where
// spread = target_grad + rest would cancel as p -> 1: target_grad * expm1(logp) in place of target_grad * p.
template <class T>
struct RowGradient {
  bool is_zero;  // no gradient flows into the row: it is written as zeros, whatever its logits hold
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

// spread * scale / sum(exp): what exp(x' - max) is multiplied by.
template <class T>
Acc<T> factor_of_exp(const Logits<T>& logits, const RowGradient<T>& row) {
  return static_cast<Acc<T>>(row.spread() * logits.scale() * std::exp(-static_cast<double>(row.log_sum)));
}

// p * spread - smooth: the whole formula without softcap, entropy, smoothed weights and grad_log_prob. The factor must
// be finite: multiplied into exp's coefficients, another would make NaN of an exp that is 0, and store_pair takes no
// NaN but those of logits.
template <class T>
void write_plain_gradient(const Logits<T>& logits, const RowGradient<T>& row, Acc<T> factor, const T* from, T* to,
                          int64_t count) {
  using A = Acc<T>;
  const TimesExp<T> times_exp(splat(factor));
  const Vec<T> scale = splat(logits.scale());
  const Vec<T> lowered = splat(-row.row_max);
  const Vec<T> smooth = splat(static_cast<A>(-row.smooth * logits.scale()));
  transform_columns(from, to, count,
                    [&](Vec<T> x) __attribute__((always_inline)) { return times_exp(fma(x, scale, lowered), smooth); });
}

// exp(x) is multiplied by this and the factors are divided by it: with 2^64, their product has float's whole range.
// With small factors it is 1: divided by 2^64 they could be subnormal, and their product with a small exp(x) vanishes
// anyhow.
template <class A, class Row>
A unit_of_factors(const Row& row) {
  return std::fabs(row.spread()) + std::fabs(row.entropy) < 0x1p-30 ? A(1) : A(0x1p64);
}

// The same with the gradient of entropy: p * (spread + entropy * logp) - smooth. Its factors must be finite too.
template <class T>
void write_entropy_gradient(const Logits<T>& logits, const RowGradient<T>& row, const T* from, T* to, int64_t count) {
  using A = Acc<T>;
  using V = Vec<T>;
  const A unit = unit_of_factors<A>(row);
  const TimesExp<T> times_exp(splat(unit));
  const V scale = splat(logits.scale());
  const V row_max = splat(row.row_max);
  const V log_sum = splat(row.log_sum);
  const V spread = splat(static_cast<A>(row.spread() * logits.scale() / unit));
  const V entropy = splat(static_cast<A>(row.entropy * logits.scale() / unit));
  const V smooth = splat(static_cast<A>(-row.smooth * logits.scale()));
  const V lowest = splat(static_cast<A>(kLowestExponent));
  transform_columns(from, to, count, [&](V x) __attribute__((always_inline)) {
    const V log_prob = fma(x, scale, -row_max) - log_sum;
    return fma(times_exp(log_prob, V{}), fma(entropy, max(log_prob, lowest), spread), smooth);
  });
}

// The coefficients of a vector of small rows, one row per lane, times logit_scale where they are gradients.
template <class T>
struct RowGradients {
  using A = Acc<T>;

  void set(int64_t lane, const RowGradient<T>& row, const Logits<T>& logits, const T* from) {
    is_zero[lane] = row.is_zero;
    target[lane] = row.target;
    if (row.is_zero) return;
    row_max[lane] = row.row_max;
    log_sum[lane] = row.log_sum;
    target_grad[lane] = static_cast<A>(row.target_grad * logits.scale());
    rest[lane] = static_cast<A>(row.rest * logits.scale());
    smooth[lane] = static_cast<A>(-row.smooth * logits.scale());
    if (row.target >= 0) logit[lane] = logits.element(from + row.target).value;
  }

  bool is_zero[kLanes<T>];
  int64_t target[kLanes<T>];
  A row_max[kLanes<T>] = {};
  A log_sum[kLanes<T>] = {};
  A target_grad[kLanes<T>] = {};
  A rest[kLanes<T>] = {};
  A smooth[kLanes<T>] = {};
  A logit[kLanes<T>] = {};
};

// As write_plain_gradient for a vector of small rows, with the targets' columns. Where a factor is not finite, writes
// nothing and returns false.
template <class T>
bool write_plain_gradients(const Logits<T>& logits, const RowGradients<T>& gradients, int64_t first_row,
                           int64_t end_row, int64_t classes, T* to) {
  using A = Acc<T>;
  using V = Vec<T>;
  const V row_max = load(gradients.row_max);
  const V log_sum = load(gradients.log_sum);
  const V target_grad = load(gradients.target_grad);
  const V rest = load(gradients.rest);
  const V smooth = load(gradients.smooth);
  const V factor = (target_grad + rest) * exp(-log_sum);
  if (sum_lanes(factor * A(0)) != 0) return false;
  const V log_prob = (load(gradients.logit) - row_max) - log_sum;
  T at_target[kLanes<T>];
  store(at_target, fma(target_grad, expm1(log_prob), fma(rest, exp(log_prob), smooth)));
  const TimesExp<T> times_exp(factor);
  SmallRows<T> rows(logits, first_row, end_row, classes);
  rows.transform([&](V x) { return times_exp(x - row_max, smooth); });
  rows.write(to);
  for (int64_t lane = 0; lane < rows.count(); ++lane) {
    T* row_to = to + lane * classes;
    if (gradients.is_zero[lane]) {
      std::memset(static_cast<void*>(row_to), 0, static_cast<size_t>(classes) * sizeof(T));
    } else if (gradients.target[lane] >= 0) {
      row_to[gradients.target[lane]] = at_target[lane];
    }
  }
  return true;
}

// The whole formula, except at the target.
template <class T>
void write_full_gradient(const Logits<T>& logits, const ClassWeights<Acc<T>>& weights, const RowGradient<T>& row,
                         int64_t begin, int64_t end, const T* row_from, T* row_to) {
  using A = Acc<T>;
  using V = Vec<T>;
  alignas(kVectorBytes) A values[kBlockElems];
  alignas(kVectorBytes) A slopes[kBlockElems];
  const A unit = unit_of_factors<A>(row);
  const TimesExp<T> times_exp(splat(unit));
  const V spread = splat(static_cast<A>(row.spread() / unit));
  const V entropy = splat(static_cast<A>(row.entropy / unit));
  const V smooth = splat(static_cast<A>(row.smooth));
  const V lowest = splat(static_cast<A>(kLowestExponent));
  const bool has_entropy = row.entropy != 0;
  for_each_block(begin, end, [&](int64_t column, int64_t count) {
    logits.stage(row_from + column, count, values, slopes);
    const A* weight = row.smooth == 0 ? nullptr : weights.from(column);
    const T* grad_log_prob = row.grad_log_prob == nullptr ? nullptr : row.grad_log_prob + column;
    write_columns(row_to + column, count, [&](int64_t at, int64_t lanes) __attribute__((always_inline)) {
      const V log_prob = (load(values + at, lanes) - row.row_max) - row.log_sum;
      const V factor = has_entropy ? fma(entropy, max(log_prob, lowest), spread) : spread;
      V gradient =
          fma(times_exp(log_prob, V{}), factor, weight == nullptr ? -smooth : -smooth * load(weight + at, lanes));
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
  double gradient = row.target_grad * std::expm1(log_prob);
  if (row.rest != 0) gradient += std::exp(log_prob) * row.rest;
  if (row.entropy != 0) {
    gradient += std::exp(log_prob) * row.entropy * std::max(log_prob, kLowestExponent);
  }
  if (row.smooth != 0) gradient -= row.smooth * weights.at(row.target);
  if (row.grad_log_prob != nullptr) gradient += to_acc(row.grad_log_prob[row.target]);
  return from_acc<T>(static_cast<Acc<T>>(gradient * element.slope));
}

}  // namespace npu_ce
