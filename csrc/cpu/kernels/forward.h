// SPDX-License-Identifier: Apache-2.0
// Forward: the state of every row, what is written per row, and the reduction over rows.
#pragma once

#include <vector>

#include "class_weights.h"
#include "logits.h"
#include "row_scan.h"
#include "scalars.h"
#include "small_rows.h"

namespace npu_ce {

template <class T>
class Forward {
 public:
  using A = Acc<T>;

  Forward(const Problem& problem, const ForwardOutputs& out)
      : problem_(problem),
        out_(out),
        logits_(problem),
        weights_(problem),
        hard_(1 - problem.label_smoothing),
        extras_(out.lse != nullptr || out.entropy != nullptr || out.argmax != nullptr) {
    if (problem.reduction != Reduction::kNone) {
      row_ce_.resize(static_cast<size_t>(problem.rows));
      if (problem.z_loss != 0) row_z_.resize(static_cast<size_t>(problem.rows));
    }
  }

  // Whole rows, one after the other, each while it is in cache.
  void run_rows(int64_t begin, int64_t end) {
    if (problem_.classes <= kSmallClasses) return run_small_rows(begin, end);
    for (int64_t row = begin; row < end; ++row) {
      RowState<A> state;
      for (int64_t chunk = 0; chunk < chunk_count(problem_.classes); ++chunk) state.merge(scan(row, chunk));
      finish_row(row, state, std::log(state.sum));
      if (out_.log_prob != nullptr) write_log_prob(row, 0, problem_.classes);
    }
  }

  // The columns of few rows shared among threads. The chunks are those of run_rows, merged in the same order.
  void run_columns(const Parallel& parallel) {
    const int64_t chunks = chunk_count(problem_.classes);
    std::vector<RowState<A>> parts(static_cast<size_t>(problem_.rows * chunks));
    parallel_for(parallel, problem_.rows * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) parts[static_cast<size_t>(i)] = scan(i / chunks, i % chunks);
    });
    for (int64_t row = 0; row < problem_.rows; ++row) {
      RowState<A> state;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) state.merge(parts[static_cast<size_t>(row * chunks + chunk)]);
      finish_row(row, state, std::log(state.sum));
    }
    if (out_.log_prob == nullptr) return;
    parallel_for(parallel, problem_.rows * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t column = i % chunks * kChunkElems;
        write_log_prob(i / chunks, column, std::min(column + kChunkElems, problem_.classes));
      }
    });
  }

  void reduce() {
    int64_t valid_rows = 0;
    double weight_sum = 0;
    for (int64_t row = 0; row < problem_.rows; ++row) {
      const int64_t target = problem_.target[row];
      if (target == problem_.ignore_index) continue;
      ++valid_rows;
      if (problem_.weight != nullptr) weight_sum += weights_.at(target);
    }
    if (problem_.weight == nullptr) weight_sum = static_cast<double>(valid_rows);
    A* denominators = static_cast<A*>(out_.denominators);
    denominators[0] = static_cast<A>(weight_sum);
    denominators[1] = static_cast<A>(valid_rows);
    if (problem_.reduction == Reduction::kNone) return;

    double ce = sum_in_order(row_ce_);
    double z = sum_in_order(row_z_);
    if (problem_.reduction == Reduction::kMean) {
      ce /= weight_sum;
      z /= static_cast<double>(valid_rows);
    }
    write_scalar(out_.loss, out_.loss_dtype, 0, ce + z);
    if (out_.z_loss != nullptr) write_scalar(out_.z_loss, out_.loss_dtype, 0, z);
  }

 private:
  bool smoothing() const { return problem_.label_smoothing != 0; }

  void run_small_rows(int64_t begin, int64_t end) {
    SmallRowStates<T> states;
    for (int64_t first = begin; first < end; first += states.kRows) {
      const int64_t count = std::min<int64_t>(states.kRows, end - first);
      for (int64_t i = 0; i < count; i += kLanes<T>) {
        const SmallRows<T> rows(logits_, first + i, end, problem_.classes);
        rows.scan(weights_, smoothing(), out_.entropy != nullptr, states, i);
      }
      states.take_logs(count);
      for (int64_t i = 0; i < count; ++i) finish_row(first + i, states.state(i, weights_.total()), states.log_sum[i]);
      if (out_.log_prob == nullptr) continue;
      for (int64_t i = 0; i < count; i += kLanes<T>) write_small_log_prob(first + i, end);
    }
  }

  void write_small_log_prob(int64_t row, int64_t end) const {
    const A* stats = static_cast<const A*>(out_.row_stats);
    SmallRows<T> rows(logits_, row, end, problem_.classes);
    const Vec<T> row_max = load(stats + row, rows.count());
    const Vec<T> log_sum = load(stats + problem_.rows + row, rows.count());
    rows.transform([&](Vec<T> x) { return (x - row_max) - log_sum; });
    rows.write(static_cast<T*>(out_.log_prob) + row * problem_.classes);
  }

  NPU_CE_NOINLINE RowState<A> scan(int64_t row, int64_t chunk) const {
    RowState<A> state;
    alignas(kVectorBytes) A staged[kBlockElems];
    const int64_t begin = chunk * kChunkElems;
    for_each_block(begin, std::min(begin + kChunkElems, problem_.classes), [&](int64_t column, int64_t count) {
      const T* from = logits_.row(row) + column;
      if (logits_.are_inputs()) {
        scan_columns(from, column, count, state);
      } else {
        logits_.stage(from, count, staged, nullptr);
        scan_columns(static_cast<const A*>(staged), column, count, state);
      }
    });
    return state;
  }

  template <class S>
  void scan_columns(const S* from, int64_t column, int64_t count, RowState<A>& state) const {
    if (out_.entropy != nullptr) {
      scan_block<true>(from, column, count, state);
    } else {
      scan_block<false>(from, column, count, state);
    }
    if (!smoothing()) return;
    // Relative to the max, float loses no digits to an offset that all logits share.
    const bool usable = state.max > std::numeric_limits<A>::lowest() && std::isfinite(state.max);
    const A reference = usable ? state.max : A(0);
    state.weighted += weighted_sum(from, weights_.from(column), count, reference) +
                      static_cast<double>(reference) * weights_.block_sum(column, count);
  }

  NPU_CE_INLINE void finish_row(int64_t row, RowState<A> state, double log_sum) {
    if (state.sum == 0) {
      state.max = -std::numeric_limits<A>::infinity();
      state.sum = log_sum = std::numeric_limits<double>::quiet_NaN();
    }
    const double row_max = state.max;
    A* stats = static_cast<A*>(out_.row_stats);
    stats[row] = state.max;
    stats[problem_.rows + row] = static_cast<A>(log_sum);
    if (extras_) write_extras(row, state, log_sum);

    double ce = 0;
    double z = 0;
    const int64_t target = problem_.target[row];
    if (target != problem_.ignore_index) {
      const double log_prob = (logits_.element(logits_.row(row) + target).value - row_max) - log_sum;
      ce = hard_ * -weights_.at(target) * log_prob;
      if (smoothing()) {
        ce -= problem_.label_smoothing / static_cast<double>(problem_.classes) *
              (state.weighted - weights_.total() * (row_max + log_sum));
      }
      if (problem_.z_loss != 0) z = problem_.z_loss * (row_max + log_sum) * (row_max + log_sum);
    }
    if (problem_.reduction == Reduction::kNone) {
      write_scalar(out_.loss, out_.loss_dtype, row, ce + z);
      if (out_.z_loss != nullptr) write_scalar(out_.z_loss, out_.loss_dtype, row, z);
    } else {
      row_ce_[static_cast<size_t>(row)] = ce;
      if (problem_.z_loss != 0) row_z_[static_cast<size_t>(row)] = z;
    }
  }

  NPU_CE_NOINLINE void write_extras(int64_t row, const RowState<A>& state, double log_sum) {
    if (out_.lse != nullptr) static_cast<A*>(out_.lse)[row] = static_cast<A>(state.max + log_sum);
    if (out_.entropy != nullptr) {
      static_cast<A*>(out_.entropy)[row] = static_cast<A>(log_sum - state.sum_times_shift / state.sum);
    }
    if (out_.argmax != nullptr) out_.argmax[row] = argmax(row, state);
  }

  NPU_CE_NOINLINE int64_t argmax(int64_t row, const RowState<A>& state) const {
    if (std::isnan(state.sum)) {
      const int64_t nan = first_column(row, 0, [](A value) { return std::isnan(value); });
      if (nan >= 0) return nan;
    }
    const A row_max = state.max;
    return first_column(row, state.max_column, [row_max](A value) { return value == row_max; });
  }

  // -1 if no column from `begin` on satisfies the predicate.
  template <class F>
  int64_t first_column(int64_t row, int64_t begin, F&& predicate) const {
    alignas(kVectorBytes) A values[kBlockElems];
    for (int64_t column = begin; column < problem_.classes; column += kBlockElems) {
      const int64_t count = std::min(kBlockElems, problem_.classes - column);
      logits_.stage(logits_.row(row) + column, count, values, nullptr);
      const A* found = std::find_if(values, values + count, predicate);
      if (found != values + count) return column + (found - values);
    }
    return -1;
  }

  NPU_CE_NOINLINE void write_log_prob(int64_t row, int64_t begin, int64_t end) const {
    const A* stats = static_cast<const A*>(out_.row_stats);
    const A row_max = stats[row];
    const A log_sum = stats[problem_.rows + row];
    T* to = static_cast<T*>(out_.log_prob) + row * problem_.classes;
    const T* from = logits_.row(row);
    if (!logits_.capped()) {
      const A scale = logits_.scale();
      write_columns(to + begin, end - begin, [&](int64_t at, int64_t lanes) __attribute__((always_inline)) {
        return (load(from + begin + at, lanes) * scale - row_max) - log_sum;
      });
      return;
    }
    alignas(kVectorBytes) A staged[kBlockElems];
    for_each_block(begin, end, [&](int64_t column, int64_t count) {
      logits_.stage(from + column, count, staged, nullptr);
      write_columns(to + column, count, [&](int64_t at, int64_t lanes) __attribute__((always_inline)) {
        return (load(staged + at, lanes) - row_max) - log_sum;
      });
    });
  }

  // Eight running sums, so that the additions need not wait for each other.
  static double sum_in_order(const std::vector<double>& values) {
    double sums[8] = {};
    size_t i = 0;
    for (; i + 8 <= values.size(); i += 8) {
      NPU_CE_UNROLL
      for (size_t k = 0; k < 8; ++k) sums[k] += values[i + k];
    }
    for (size_t k = 0; i < values.size(); ++i, ++k) sums[k] += values[i];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }

  const Problem& problem_;
  const ForwardOutputs& out_;
  Logits<T> logits_;
  ClassWeights<A> weights_;
  double hard_;  // 1 - label_smoothing, the factor of the target's own term
  bool extras_;
  std::vector<double> row_ce_;
  std::vector<double> row_z_;
};

}  // namespace npu_ce
