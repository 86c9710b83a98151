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

// p * spread - smooth for columns [begin, end): all there is without softcap, entropy, smoothed weights and
// grad_log_prob.
template <class T>
void write_plain_gradient(const Logits<T>& logits, const RowGradient<T>& row, const T* from, T* to, int64_t count) {
  using A = Acc<T>;
  const A scale = logits.scale();
  const Vec<T> factor = splat(static_cast<A>(row.spread() * scale));
  const ScaledExp<Vec<T>> scaled_exp(factor);
  const Vec<T> spread = scaled_exp.unscaled(factor);
  const Vec<T> smooth = splat(static_cast<A>(-row.smooth * scale));
  const A row_max = row.row_max;
  const A log_sum = row.log_sum;
  write_columns(to, count, [&](int64_t at, int64_t lanes) __attribute__((always_inline)) {
    return fma(scaled_exp((load(from + at, lanes) * scale - row_max) - log_sum), spread, smooth);
  });
}

// The same for rows on their side, each with its own numbers.
template <class T>
void write_plain_gradients(const Logits<T>& logits, const RowGradient<T>* gradients, int64_t first_row, int64_t count,
                           int64_t classes, T* to) {
  using A = Acc<T>;
  Vec<T> row_max{};
  Vec<T> log_sum{};
  Vec<T> factor{};
  Vec<T> smooth{};
  for (int64_t lane = 0; lane < count; ++lane) {
    row_max[lane] = gradients[lane].row_max;
    log_sum[lane] = gradients[lane].log_sum;
    factor[lane] = static_cast<A>(gradients[lane].spread() * logits.scale());
    smooth[lane] = static_cast<A>(-gradients[lane].smooth * logits.scale());
  }
  const ScaledExp<Vec<T>> scaled_exp(factor);
  const Vec<T> spread = scaled_exp.unscaled(factor);
  SmallRows<T> rows(logits, first_row, count, classes);
  rows.transform([&](Vec<T> x) { return fma(scaled_exp((x - row_max) - log_sum), spread, smooth); });
  rows.write(to);
}

// The whole formula, except at the target.
template <class T>
void write_full_gradient(const Logits<T>& logits, const ClassWeights<Acc<T>>& weights, const RowGradient<T>& row,
                         int64_t begin, int64_t end, const T* row_from, T* row_to) {
  using A = Acc<T>;
  using V = Vec<T>;
  alignas(kVectorBytes) A values[kBlockElems];
  alignas(kVectorBytes) A slopes[kBlockElems];
  const ScaledExp<V> scaled_exp(splat(static_cast<A>(std::fabs(row.spread()) + std::fabs(row.entropy))));
  const V spread = scaled_exp.unscaled(splat(static_cast<A>(row.spread())));
  const V entropy = scaled_exp.unscaled(splat(static_cast<A>(row.entropy)));
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
