// SPDX-License-Identifier: Apache-2.0
// Backward where a tile is many rows. A core has a run of rows; their numbers and their elements go through together,
// and the scalar unit sees neither.
#pragma once

#include "ce_backward_tile.h"
#include "ce_many_rows.h"

namespace npu_ce {

template <class T>
class BackwardNarrow {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem* problem, const CeGradients* gradients,
                              const CeBackwardPlan* plan) {
    problem_ = problem;
    plan_ = plan;
    options_.Init(*problem, *gradients);
    const uint64_t rows = problem->rows, classes = problem->classes;
    x_ = InGm<T>(problem->input, (rows - 1) * problem->row_stride + classes);
    if (plan->round_l2 != 0) {
      x_.SetL2CacheHint(CacheMode::CACHE_MODE_DISABLE);
    }
    to_ = InGm<T>(gradients->input_gradient, rows * classes);
    log_prob_stride_ = gradients->log_prob_row_stride;
    log_prob_ = InGm<T>(gradients->log_prob, options_.log_prob ? (rows - 1) * log_prob_stride_ + classes : 0);

    const CeBackwardBuffers& bytes = plan->buffers;
    pipe->InitBuffer(in_, plan->input_tiles, bytes.tile);
    pipe->InitBuffer(out_, 2, bytes.tile);
    if (options_.nothing) {
      return;
    }
    if (bytes.work > 0) pipe->InitBuffer(work_, bytes.work);
    if (bytes.result > 0) pipe->InitBuffer(result_, bytes.result);
    if (bytes.term > 0) pipe->InitBuffer(term_, bytes.term);
    if (bytes.log_prob > 0) pipe->InitBuffer(log_probs_, 2, bytes.log_prob);
    pipe->InitBuffer(row_starts_, plan->row_vector * sizeof(int32_t));
    pipe->InitBuffer(in_row_, plan->row_vector * sizeof(int32_t));
    pipe->InitBuffer(in_tile_, plan->row_vector * sizeof(int32_t));
    if (options_.capped) capped_.Init(pipe, options_.cap, options_.scale);
    rows_.SetWeightTotal(static_cast<float>(classes));
    if (bytes.weights > 0) {
      pipe->InitBuffer(weights_, bytes.weights);
      LoadWeights();  // before queues hold all events of V_MTE2
    }
    rows_.Init(pipe, problem, gradients, plan, &options_, &capped_);
    many_.Init(pipe, &rows_, *plan);
    Fill();
  }

  __aicore__ inline void Process() {
    const uint64_t core = GetBlockIdx(), cores = GetBlockNum();
    const uint64_t begin = problem_->rows * core / cores, end = problem_->rows * (core + 1) / cores;
    if (!options_.nothing && begin < end) {
      ReadTile(begin, RowsFrom(begin, end));
    }
    for (uint64_t row = begin; row < end; row += plan_->group_rows) {
      const uint32_t rows = RowsFrom(row, end);
      if (options_.nothing) {
        WriteZeros(row, rows);
        continue;
      }
      LocalTensor<T> in = in_.template DeQue<T>(), log_prob;
      if (options_.log_prob) log_prob = log_probs_.template DeQue<T>();
      rows_.FindTargets(rows);
      const uint64_t next = row + rows;
      if (next < end) {
        ReadTile(next, RowsFrom(next, end));  // on its way while this one is worked on
      }
      ProcessTile(row, rows, in, log_prob);
    }
  }

 private:
  using Queue = TQue<QuePosition::VECIN, 1>;
  using Buffer = TBuf<QuePosition::VECCALC>;

  __aicore__ inline uint32_t RowsFrom(uint64_t row, uint64_t end) const {
    return end - row < plan_->group_rows ? end - row : plan_->group_rows;
  }

  __aicore__ inline void ReadTile(uint64_t row, uint32_t rows) {
    rows_.Read(row, rows);
    const LocalTensor<T> in = in_.template AllocTensor<T>();
    CopyRowsIn(in, x_[row * problem_->row_stride], rows, problem_->classes, problem_->row_stride, plan_->tile_columns);
    in_.EnQue(in);
    if (options_.log_prob) {
      const LocalTensor<T> gradient = log_probs_.template AllocTensor<T>();
      CopyRowsIn(gradient, log_prob_[row * log_prob_stride_], rows, problem_->classes, log_prob_stride_,
                 plan_->tile_columns);
      log_probs_.EnQue(gradient);
    }
  }

  __aicore__ inline void ProcessTile(uint64_t row, uint32_t rows, LocalTensor<T>& in, LocalTensor<T>& log_prob) {
    LocalTensor<T> out = out_.template AllocTensor<T>();
    many_.SetRows(rows);
    BackwardTile<T> tile;
    if (plan_->buffers.weights > 0) tile.weights = weights_.template Get<float>();
    tile.log_prob = log_prob;
    if (plan_->buffers.term > 0) tile.term = term_.template Get<float>();
    if constexpr (kIsFloat<T>) {
      tile.x = in;
      tile.result = out;
    } else {
      tile.x = work_.template Get<float>();
      tile.result = options_.capped ? result_.template Get<float>() : tile.x;
    }
    FindPlaces(rows);
    if (options_.log_prob) TakeFromLogProb(tile, rows);
    if constexpr (!kIsFloat<T>) {
      ToFloats(tile.x, in, many_.Count());
      VectorBarrier();
    }
    TakeElements(rows_.logit, tile.x, in_tile_, rows);
    if (plan_->buffers.weights > 0) TakeElements(rows_.class_weight, tile.weights, in_row_, rows);
    rows_.Work();
    ComputeGradient(tile, many_, options_, capped_);
    many_.SetColumn(tile.result, rows_.ClassNumbers(), rows_.at_target);
    if (options_.zero_ignored) {
      many_.ZeroUnless(tile.result, rows_.KeepCounted());
    }
    if constexpr (!kIsFloat<T>) {
      FromFloats(out, tile.result, many_.Count());
    }
    in_.FreeTensor(in);
    if (options_.log_prob) log_probs_.FreeTensor(log_prob);
    Write(out, row, rows);
  }

  // The sum of grad_log_prob, and its value at the target.
  __aicore__ inline void TakeFromLogProb(const BackwardTile<T>& tile, uint32_t rows) {
    LocalTensor<float> values;
    if constexpr (kIsFloat<T>) {
      values = tile.log_prob;
    } else {
      values = tile.term;
      ToFloats(values, tile.log_prob, many_.Count());
      VectorBarrier();
    }
    many_.Sums(rows_.log_prob_sum, values, tile.result);
    TakeElements(rows_.class_log_prob, values, in_tile_, rows);
  }

  // Bytes to each row's target, from the beginning of a tile and of a row.
  __aicore__ inline void FindPlaces(uint32_t rows) {
    const LocalTensor<int32_t> in_row = in_row_.Get<int32_t>(), in_tile = in_tile_.Get<int32_t>();
    Muls(in_row, rows_.Classes(), int32_t(sizeof(float)), rows);
    VectorBarrier();
    Add(in_tile, in_row, row_starts_.Get<int32_t>(), rows);
    VectorBarrier();
  }

  __aicore__ inline void TakeElements(const LocalTensor<float>& to, const LocalTensor<float>& from, Buffer& at,
                                      uint32_t rows) {
    Gather(to, from, at.template Get<uint32_t>(), 0, rows);
    VectorBarrier();
  }

  __aicore__ inline void WriteZeros(uint64_t row, uint32_t rows) {
    LocalTensor<T> out = out_.template AllocTensor<T>();
    FillZeros(out, plan_->buffers.tile / sizeof(T));
    Write(out, row, rows);
  }

  __aicore__ inline void Write(LocalTensor<T>& out, uint64_t row, uint32_t rows) {
    out_.EnQue(out);
    out = out_.template DeQue<T>();
    CopyRowsOut(to_[row * problem_->classes], out, rows, problem_->classes, plan_->tile_columns);
    out_.FreeTensor(out);
  }

  // The weights stay in UB.
  __aicore__ inline void LoadWeights() {
    const LocalTensor<float> weights = weights_.template Get<float>();
    Duplicate(weights, 0.0f, plan_->buffers.weights / sizeof(float));
    Order<HardEvent::V_MTE2>();
    CopyIn(weights, InGm<float>(problem_->weight, problem_->classes), problem_->classes);
    Order<HardEvent::MTE2_V>();
    if (!options_.weighted) {
      return;
    }
    const LocalTensor<float> sum = term_.template Get<float>();
    ReduceSum(sum, weights, sum[kCeLanes], problem_->classes);
    Order<HardEvent::V_S>();
    rows_.SetWeightTotal(sum.GetValue(0));
    Order<HardEvent::S_V>();
  }

  // Whatever lies behind the ends of rows, and behind the last row, is a number, and 0 in grad_log_prob.
  __aicore__ inline void Fill() {
    FillQueue(in_, plan_->buffers.tile);
    if (options_.log_prob) FillQueue(log_probs_, plan_->buffers.log_prob);
    const LocalTensor<int32_t> starts = row_starts_.Get<int32_t>();
    CreateVecIndex(starts, int32_t(0), plan_->row_vector);
    VectorBarrier();
    Muls(starts, starts, int32_t(plan_->tile_columns * sizeof(float)), plan_->row_vector);
    VectorBarrier();
  }

  __aicore__ inline void FillQueue(Queue& queue, uint32_t bytes) {
    LocalTensor<T> first = queue.template AllocTensor<T>(), second = queue.template AllocTensor<T>();
    FillZeros(first, bytes / sizeof(T));
    FillZeros(second, bytes / sizeof(T));
    queue.FreeTensor(first);
    queue.FreeTensor(second);
  }

  const CeProblem* problem_;
  const CeBackwardPlan* plan_;
  BackwardOptions options_;
  CappedLogits capped_;
  BackwardRows rows_;
  ManyRows many_;
  GlobalTensor<T> x_, log_prob_, to_;
  uint64_t log_prob_stride_;
  Queue in_, log_probs_;
  TQue<QuePosition::VECOUT, 1> out_;
  Buffer work_, result_, term_, row_starts_, in_row_, in_tile_, weights_;
};

}  // namespace npu_ce
