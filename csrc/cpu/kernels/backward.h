// SPDX-License-Identifier: Apache-2.0
// Backward: the coefficients of every row, then one read of its logits and one write of its gradient.
#pragma once

#include <vector>

#include "row_gradient.h"
#include "row_scan.h"
#include "scalars.h"

namespace npu_ce {

template <class T>
class Backward {
 public:
  using A = Acc<T>;

  Backward(const Problem& problem, const Gradients& gradients)
      : problem_(problem),
        gradients_(gradients),
        logits_(problem),
        weights_(problem),
        loss_flows_(present(gradients.loss) || present(gradients.z_loss)),
        by_row_(!logits_.capped() && gradients.log_prob == nullptr &&
                (problem.label_smoothing == 0 || problem.weight == nullptr)),
        plain_(by_row_ && !present(gradients.entropy)) {
    if (problem.reduction != Reduction::kMean) return;
    const A* denominators = static_cast<const A*>(gradients.denominators);
    of_loss_ = 1 / static_cast<double>(denominators[0]);
    of_z_loss_ = 1 / static_cast<double>(denominators[1]);
  }

  void run_rows(int64_t begin, int64_t end) const {
    if (plain_ && problem_.classes <= kSmallClasses) return run_small_rows(begin, end);
    const int64_t chunks = chunk_count(problem_.classes);
    for (int64_t row = begin; row < end; ++row) {
      double log_prob_sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) log_prob_sum += sum_grad_log_prob(row, chunk);
      write(row, log_prob_sum, 0, problem_.classes);
    }
  }

  void run_columns(const Parallel& parallel) const {
    const int64_t chunks = chunk_count(problem_.classes);
    std::vector<double> parts(static_cast<size_t>(problem_.rows * chunks));
    if (gradients_.log_prob != nullptr) {
      parallel_for(parallel, problem_.rows * chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) parts[static_cast<size_t>(i)] = sum_grad_log_prob(i / chunks, i % chunks);
      });
    }
    parallel_for(parallel, problem_.rows * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / chunks;
        double log_prob_sum = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
          log_prob_sum += parts[static_cast<size_t>(row * chunks + chunk)];
        const int64_t column = i % chunks * kChunkElems;
        write(row, log_prob_sum, column, std::min(column + kChunkElems, problem_.classes));
      }
    });
  }

 private:
  const T* grad_log_prob(int64_t row) const {
    return gradients_.log_prob == nullptr
               ? nullptr
               : static_cast<const T*>(gradients_.log_prob) + row * gradients_.log_prob_stride_elems;
  }

  double sum_grad_log_prob(int64_t row, int64_t chunk) const {
    double sum = 0;
    if (gradients_.log_prob == nullptr) return sum;
    const int64_t begin = chunk * kChunkElems;
    for_each_block(begin, std::min(begin + kChunkElems, problem_.classes), [&](int64_t column, int64_t count) {
      sum += weighted_sum<T>(grad_log_prob(row) + column, nullptr, count, A(0));
    });
    return sum;
  }

  NPU_CE_INLINE RowGradient<T> row_gradient(int64_t row, double log_prob_sum) const {
    const A* stats = static_cast<const A*>(gradients_.row_stats);
    const int64_t target = problem_.target[row];
    const bool ignored = target == problem_.ignore_index;
    const bool loss_flows = !ignored && loss_flows_;

    RowGradient<T> result{};
    result.is_zero = !loss_flows && gradients_.log_prob == nullptr && value_at(gradients_.lse, row) == 0 &&
                     value_at(gradients_.entropy, row) == 0;
    result.row_max = stats[row];
    result.log_sum = stats[problem_.rows + row];
    result.target = ignored ? -1 : target;
    result.grad_log_prob = grad_log_prob(row);
    result.entropy = -value_at(gradients_.entropy, row);
    result.rest = value_at(gradients_.lse, row) - log_prob_sum;
    // Not multiplied where absent: the entropy of a row of NaN must not reach a gradient that does not flow.
    if (present(gradients_.entropy)) result.rest += result.entropy * value_at(gradients_.entropy_value, row);
    if (!loss_flows) return result;

    const double of_loss = value_at(gradients_.loss, row);
    const double g = of_loss * of_loss_;
    if (present(gradients_.loss)) {
      result.target_grad = g * (1 - problem_.label_smoothing) * weights_.at(target);
      if (problem_.label_smoothing != 0) {
        result.smooth = g * problem_.label_smoothing / static_cast<double>(problem_.classes);
        result.rest += result.smooth * weights_.total();
      }
    }
    if (problem_.z_loss != 0) {
      const double gz = (of_loss + value_at(gradients_.z_loss, row)) * of_z_loss_;
      const double lse = static_cast<double>(result.row_max) + static_cast<double>(result.log_sum);
      result.rest += gz * 2 * problem_.z_loss * lse;
    }
    return result;
  }

  void run_small_rows(int64_t begin, int64_t end) const {
    const int64_t classes = problem_.classes;
    for (int64_t row = begin; row < end; row += kLanes<T>) {
      const int64_t count = std::min<int64_t>(kLanes<T>, end - row);
      RowGradients<T> gradients;
      for (int64_t lane = 0; lane < count; ++lane) {
        gradients.set(lane, row_gradient(row + lane, 0), logits_, logits_.row(row + lane));
      }
      T* to = static_cast<T*>(gradients_.input) + row * classes;
      if (!write_plain_gradients(logits_, gradients, row, end, classes, to)) {
        for (int64_t lane = 0; lane < count; ++lane) write(row + lane, 0, 0, classes);
      }
    }
  }

  NPU_CE_NOINLINE void write(int64_t row, double log_prob_sum, int64_t begin, int64_t end) const {
    const RowGradient<T> gradient = row_gradient(row, log_prob_sum);
    T* to = static_cast<T*>(gradients_.input) + row * problem_.classes;
    if (gradient.is_zero) {
      std::memset(static_cast<void*>(to + begin), 0, static_cast<size_t>(end - begin) * sizeof(T));
      return;
    }
    const T* from = logits_.row(row);
    const bool has_target = gradient.target >= begin && gradient.target < end;
    // Before the columns are written, which may be over the logits.
    const T at_target = has_target ? target_gradient(logits_, weights_, gradient, from) : T{};
    const A factor = factor_of_exp(logits_, gradient);
    if (plain_ && std::isfinite(factor)) {
      write_plain_gradient(logits_, gradient, factor, from + begin, to + begin, end - begin);
    } else if (by_row_ && std::isfinite(factor) && std::isfinite(gradient.entropy)) {
      write_entropy_gradient(logits_, gradient, from + begin, to + begin, end - begin);
    } else {
      write_full_gradient(logits_, weights_, gradient, begin, end, from, to);
    }
    if (has_target) to[gradient.target] = at_target;
  }

  const Problem& problem_;
  const Gradients& gradients_;
  Logits<T> logits_;
  ClassWeights<A> weights_;
  bool loss_flows_;
  bool by_row_;         // a class's gradient depends on its logit and on the row's coefficients, and nothing else
  bool plain_;          // by_row_, and entropy has no gradient
  double of_loss_ = 1;  // d returned loss / d row's loss: 1, or 1 / denominators[0] for mean
  double of_z_loss_ = 1;
};

}  // namespace npu_ce
