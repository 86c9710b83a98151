// SPDX-License-Identifier: Apache-2.0
// Tiles on their way through a core, whatever their layout: logits and the gradient of log_prob come in, the gradient
// goes out. A tile is many rows, tile_columns apart in UB, or a piece of one row.
#pragma once

#include "tile.h"

namespace npu_ce {

template <class T>
class BackwardTiles {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, const CeGradients& gradients,
                              const CeBackwardPlan& plan) {
    options = BackwardOptions(problem, gradients);
    plan_ = &plan;
    classes_ = problem.classes;
    stride_ = problem.row_stride;
    log_prob_stride_ = gradients.log_prob_row_stride;
    const uint64_t rows = problem.rows;
    x_ = InGm<T>(problem.input, (rows - 1) * stride_ + classes_);
    if (plan.bypass_l2 != 0) {
      x_.SetL2CacheHint(CacheMode::CACHE_MODE_DISABLE);
    }
    to_ = InGm<T>(gradients.input_gradient, rows * classes_);
    log_prob_ = InGm<T>(gradients.log_prob, options.log_prob ? (rows - 1) * log_prob_stride_ + classes_ : 0);
    if (plan.bypass_l2 != 0) {
      log_prob_.SetL2CacheHint(CacheMode::CACHE_MODE_DISABLE);
    }
    if (!options.nothing) {
      logits.Init(pipe, problem);
    }
  }

  // Tiles come last, and in the wide layout after the buffers per row: those of a half dtype then lie in other thirds
  // of the UB, which have banks of their own, than the floats that they are cast to and from.
  __aicore__ inline void InitBuffers(TPipe* pipe) {
    const CeBackwardBuffers& bytes = plan_->buffers;
    if (!options.nothing) {
      if (bytes.work > 0) pipe->InitBuffer(work_, bytes.work);
      if (bytes.result > 0) pipe->InitBuffer(result_, bytes.result);
      if (bytes.term > 0) pipe->InitBuffer(term_, bytes.term);
      if (bytes.gap > 0) pipe->InitBuffer(gap_, bytes.gap);
      if (bytes.log_prob > 0) pipe->InitBuffer(log_probs_, 2, bytes.log_prob);
    }
    pipe->InitBuffer(in_, plan_->input_tiles, bytes.tile);
    pipe->InitBuffer(out_, 2, bytes.tile);
  }

  // Zeros the buffers: instructions over whole tiles read behind a copy's end, where grad_log_prob has to be 0 and all
  // else a number.
  __aicore__ inline void Fill() {
    FillQueue(in_, plan_->input_tiles, plan_->buffers.tile);
    if (options.log_prob) FillQueue(log_probs_, 2, plan_->buffers.log_prob);
  }

  __aicore__ inline LocalTensor<float> Term() { return term_.template Get<float>(); }
  __aicore__ inline GlobalTensor<T> LogitAt(uint64_t row, uint32_t column) { return x_[row * stride_ + column]; }
  __aicore__ inline GlobalTensor<T> LogProbAt(uint64_t row, uint32_t column) {
    return log_prob_[row * log_prob_stride_ + column];
  }

  __aicore__ inline void Read(uint64_t row, uint32_t rows, uint32_t column, uint32_t columns) {
    const LocalTensor<T> in = in_.template AllocTensor<T>();
    CopyRowsIn(in, LogitAt(row, column), rows, columns, stride_, plan_->tile_columns);
    in_.EnQue(in);
    if (options.log_prob) {
      const LocalTensor<T> gradient = log_probs_.template AllocTensor<T>();
      CopyRowsIn(gradient, LogProbAt(row, column), rows, columns, log_prob_stride_, plan_->tile_columns);
      log_probs_.EnQue(gradient);
    }
  }

  // The tile that was read first of those not yet taken: `count` elements.
  __aicore__ inline BackwardTile<T> Take(uint32_t count) {
    BackwardTile<T> tile;
    tile.in = in_.template DeQue<T>();
    tile.out = out_.template AllocTensor<T>();
    if (options.log_prob) tile.log_prob = log_probs_.template DeQue<T>();
    if (plan_->buffers.term > 0) tile.term = Term();
    if constexpr (kIsFloat<T>) {
      tile.x = tile.in;
      tile.result = tile.out;
    } else {
      tile.x = work_.template Get<float>();
      tile.result = plan_->buffers.result > 0 ? result_.template Get<float>() : tile.x;
      ToFloats(tile.x, tile.in, count);
      VectorBarrier();
    }
    return tile;
  }

  __aicore__ inline void Write(BackwardTile<T>& tile, uint32_t count, uint64_t row, uint32_t rows, uint32_t column,
                               uint32_t columns) {
    if constexpr (!kIsFloat<T>) {
      FromFloats(tile.out, tile.result, count);
    }
    in_.FreeTensor(tile.in);
    if (options.log_prob) log_probs_.FreeTensor(tile.log_prob);
    Write(tile.out, row, rows, column, columns);
  }

  __aicore__ inline void WriteZeros(uint64_t row, uint32_t rows, uint32_t column, uint32_t columns) {
    LocalTensor<T> out = out_.template AllocTensor<T>();
    FillZeros(out, rows * plan_->tile_columns);
    Write(out, row, rows, column, columns);
  }

  BackwardOptions options;
  Logits logits;

 private:
  using Queue = TQue<QuePosition::VECIN, kCeMostInputTiles>;

  __aicore__ inline void Write(LocalTensor<T>& out, uint64_t row, uint32_t rows, uint32_t column, uint32_t columns) {
    out_.EnQue(out);
    out = out_.template DeQue<T>();
    CopyRowsOut(to_[row * classes_ + column], out, rows, columns, plan_->tile_columns);
    out_.FreeTensor(out);
  }

  __aicore__ inline void FillQueue(Queue& queue, uint32_t tiles, uint32_t bytes) {
    LocalTensor<T> tile[kCeMostInputTiles];
    for (uint32_t i = 0; i < tiles; ++i) {
      tile[i] = queue.template AllocTensor<T>();
      FillZeros(tile[i], bytes / sizeof(T));
    }
    for (uint32_t i = 0; i < tiles; ++i) {
      queue.FreeTensor(tile[i]);
    }
  }

  const CeBackwardPlan* plan_;
  uint32_t classes_;
  uint64_t stride_, log_prob_stride_;
  GlobalTensor<T> x_, log_prob_, to_;
  Queue in_, log_probs_;
  TQue<QuePosition::VECOUT, 1> out_;
  TBuf<QuePosition::VECCALC> work_, result_, term_, gap_;
};

}  // namespace npu_ce
