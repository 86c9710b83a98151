// SPDX-License-Identifier: Apache-2.0
// Backward where a tile is many rows. A core has a run of rows. The vector unit works on the coefficients (rows.h) and
// the elements of all rows of a tile at once; the scalar unit reads neither.
#pragma once

#include "many_rows.h"
#include "tiles.h"

namespace npu_ce {

template <class T>
class BackwardNarrow {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, const CeGradients& gradients,
                              const CeBackwardPlan& plan) {
    problem_ = &problem;
    plan_ = &plan;
    tiles_.Init(pipe, problem, gradients, plan);
    tiles_.InitBuffers(pipe);
    if (tiles_.options.nothing) {
      return;
    }
    rows_.SetWeightTotal(AsFloat(problem.classes));
    if (plan.buffers.weights > 0) {
      pipe->InitBuffer(weights_, plan.buffers.weights);
      LoadWeights();  // before the queues take all event ids of V_MTE2
    }
    rows_.Init(pipe, &problem, &gradients, &plan, &tiles_.options, &tiles_.logits);
    many_.Init(pipe, &rows_, plan);
    pipe->InitBuffer(row_starts_, plan.buffers.row_starts);
    CountBytes(row_starts_.Get<int32_t>(), plan.tile_columns * sizeof(float), plan.row_vector);
    tiles_.Fill();
  }

  __aicore__ inline void Process() {
    const uint64_t core = GetBlockIdx(), cores = GetBlockNum();
    const uint64_t begin = problem_->rows * core / cores, end = problem_->rows * (core + 1) / cores;
    if (!tiles_.options.nothing && begin < end) {
      ReadTile(begin, RowsFrom(begin, end));
    }
    for (uint64_t row = begin; row < end; row += plan_->group_rows) {
      const uint32_t rows = RowsFrom(row, end);
      if (tiles_.options.nothing) {
        tiles_.WriteZeros(row, rows, 0, problem_->classes);
        continue;
      }
      many_.SetRows(rows);
      BackwardTile<T> tile = tiles_.Take(many_.Count());
      rows_.FindTargets(rows);
      const uint64_t next = row + rows;
      if (next < end) {
        ReadTile(next, RowsFrom(next, end));  // copied while this one is worked on
      }
      ProcessTile(tile, row, rows);
    }
  }

 private:
  __aicore__ inline uint32_t RowsFrom(uint64_t row, uint64_t end) const {
    return end - row < plan_->group_rows ? end - row : plan_->group_rows;
  }

  __aicore__ inline void ReadTile(uint64_t row, uint32_t rows) {
    rows_.Read(row, rows);
    tiles_.Read(row, rows, 0, problem_->classes);
  }

  __aicore__ inline void ProcessTile(BackwardTile<T>& tile, uint64_t row, uint32_t rows) {
    if (plan_->buffers.weights > 0) tile.weights = weights_.template Get<float>();
    many_.SetOut(tile.out);
    rows_.BeginWork();
    TakeElements(tile, rows);
    rows_.Work();
    ComputeGradient(tile, many_, tiles_.options, tiles_.logits);
    many_.SetColumn(tile.result, rows_.ClassNumbers(), rows_.at_target);
    if (tiles_.options.zero_rows) {
      many_.ZeroUnless(tile.result, rows_.KeepFlowing());
    }
    tiles_.Write(tile, many_.Count(), row, rows, 0, problem_->classes);
  }

  // Fills the vectors that rows_ needs: the values at each row's target, and the sum of the row's grad_log_prob.
  __aicore__ inline void TakeElements(const BackwardTile<T>& tile, uint32_t rows) {
    const LocalTensor<int32_t> in_row = rows_.Scratch(), in_tile = rows_.MoreScratch();  // offsets in bytes
    Muls(in_row, rows_.Classes(), int32_t(sizeof(float)), rows);
    VectorBarrier();
    Add(in_tile, row_starts_.Get<int32_t>(), in_row, rows);
    VectorBarrier();

    Gather(rows_.logit, tile.x, in_tile.ReinterpretCast<uint32_t>(), 0, rows);
    if (plan_->buffers.weights > 0) {
      Gather(rows_.class_weight, tile.weights, in_row.ReinterpretCast<uint32_t>(), 0, rows);
    }
    if (tiles_.options.log_prob) {
      LocalTensor<float> values;
      if constexpr (kIsFloat<T>) {
        values = tile.log_prob;
      } else {
        values = tile.term;
        ToFloats(values, tile.log_prob, many_.Count());
      }
      many_.Sums(rows_.log_prob_sum, values);
      Gather(rows_.class_log_prob, values, in_tile.ReinterpretCast<uint32_t>(), 0, rows);
    }
    VectorBarrier();
  }

  // The weights, which stay in UB, and their sum.
  __aicore__ inline void LoadWeights() {
    const LocalTensor<float> weights = weights_.template Get<float>();
    Duplicate(weights, 0.0f, plan_->buffers.weights / sizeof(float));
    Order<HardEvent::V_MTE2>();
    CopyIn(weights, InGm<float>(problem_->weight, problem_->classes), problem_->classes);
    Order<HardEvent::MTE2_V>();
    if (!tiles_.options.weighted) {
      return;
    }
    const LocalTensor<float> sum = tiles_.Term();
    ReduceSum(sum, weights, sum[kCeLanes], problem_->classes);
    rows_.SetWeightTotal(sum.GetValue(0));  // ReduceSum ends on the scalar unit
    Order<HardEvent::S_V>();
  }

  const CeProblem* problem_;
  const CeBackwardPlan* plan_;
  BackwardTiles<T> tiles_;
  BackwardRows rows_;
  ManyRows many_;
  TBuf<QuePosition::VECIN> weights_;  // copies from GM go to VECIN or VECOUT (page DataCopyPad)
  TBuf<QuePosition::VECCALC> row_starts_;
};

}  // namespace npu_ce
