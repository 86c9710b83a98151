// SPDX-License-Identifier: Apache-2.0
// Backward where a tile is a piece of one row. A core has a run of pieces: the end of one row, whole rows, the
// beginning of another. Their rows go through in groups; within a group, columns are the outer loop, so that a tile of
// the weights is read once for all of the group's rows.
#pragma once

#include "tiles.h"

namespace npu_ce {

template <class T>
class BackwardWide {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, const CeGradients& gradients,
                              const CeBackwardPlan& plan) {
    problem_ = &problem;
    plan_ = &plan;
    weight_ = InGm<float>(problem.weight, problem.weight != nullptr ? problem.classes : 0);
    tiles_.Init(pipe, problem, gradients, plan);
    if (tiles_.options.nothing) {
      tiles_.InitBuffers(pipe);
      return;
    }
    const CeBackwardBuffers& bytes = plan.buffers;
    rows_.Init(pipe, &problem, &gradients, &plan, &tiles_.options, &tiles_.logits);
    pipe->InitBuffer(elements_, 1, bytes.row_elements);
    Fill();
    tiles_.InitBuffers(pipe);
    if (bytes.weights > 0) pipe->InitBuffer(weights_, 1, bytes.weights);
    if (tiles_.options.weighted) {
      rows_.SetWeightTotal(InGm<float>(gradients.workspace + plan.weight_total.sums, 1).GetValue(0));
    } else {
      rows_.SetWeightTotal(AsFloat(problem.classes));
    }
  }

  __aicore__ inline void Process() {
    const uint64_t pieces = plan_->pieces, units = problem_->rows * pieces, core = GetBlockIdx(), cores = GetBlockNum();
    uint64_t unit = units * core / cores;
    const uint64_t end = units * (core + 1) / cores;
    while (unit < end) {
      const uint64_t row = unit / pieces, piece = unit % pieces;
      if (piece == 0 && end - unit >= pieces) {
        const uint64_t rows = (end - unit) / pieces;
        ProcessRows(row, row + rows, 0, problem_->classes);
        unit += rows * pieces;
      } else {
        const uint64_t last = end < (row + 1) * pieces ? end - row * pieces : pieces;
        ProcessRows(row, row + 1, Column(piece), Column(last));
        unit = row * pieces + last;
      }
    }
  }

 private:
  using Queue = TQue<QuePosition::VECIN, 1>;

  // The rows whose coefficients are computed, and the next of their tiles to read.
  struct Group {
    uint64_t row;
    uint32_t rows;
    uint32_t end;  // of the columns
    uint32_t next_row;
    uint32_t next_column;
  };

  __aicore__ inline uint32_t Column(uint64_t piece) const {
    const uint64_t column = piece * plan_->piece_columns;
    return column < problem_->classes ? static_cast<uint32_t>(column) : problem_->classes;
  }

  __aicore__ inline void ProcessRows(uint64_t row, uint64_t last, uint32_t begin, uint32_t end) {
    for (; row < last; row += plan_->group_rows) {
      const uint32_t rows = last - row < plan_->group_rows ? last - row : plan_->group_rows;
      group_ = {row, rows, end, 0, begin};
      if (!tiles_.options.nothing) {
        PrepareGroup(begin);
      }
      for (uint32_t column = begin; column < end; column += plan_->tile_columns) {
        ProcessTiles(column);
      }
      Order<HardEvent::S_V>();
    }
  }

  // Computes the coefficients of the group's rows. The logit of a target is read only where its column is this core's:
  // if the gradient is written in place, another core may be overwriting it.
  __aicore__ inline void PrepareGroup(uint32_t begin) {
    const uint64_t row = group_.row;
    const uint32_t rows = group_.rows;
    rows_.Read(row, rows);
    rows_.FindTargets(rows);
    Order<HardEvent::V_S>();
    rows_.BeginWork();
    const LocalTensor<uint8_t> elements = elements_.template AllocTensor<uint8_t>();
    for (uint32_t i = 0; i < rows; ++i) {
      const uint32_t y = rows_.Classes().GetValue(i);
      if (IsZero(i)) {
        continue;
      }
      if (problem_->weight != nullptr) CopyElement(elements, RowElement::kWeight, i, weight_[y]);
      if (y >= begin && y < group_.end) {
        CopyElement(elements, RowElement::kLogit, i, tiles_.LogitAt(row + i, y));
        if (tiles_.options.log_prob) CopyElement(elements, RowElement::kLogProb, i, tiles_.LogProbAt(row + i, y));
      }
    }
    elements_.EnQue(elements);
    for (uint32_t i = 0; i < plan_->input_tiles; ++i) {
      ReadNextTile();
    }
    LocalTensor<uint8_t> read = elements_.template DeQue<uint8_t>();
    TakeElements<T>(rows_.logit, read, RowElement::kLogit, rows);
    if (tiles_.options.log_prob) TakeElements<T>(rows_.class_log_prob, read, RowElement::kLogProb, rows);
    if (problem_->weight != nullptr) TakeElements<float>(rows_.class_weight, read, RowElement::kWeight, rows);
    elements_.FreeTensor(read);
    rows_.Work();
    Order<HardEvent::V_S>();
  }

  template <class E>
  __aicore__ inline void CopyElement(const LocalTensor<uint8_t>& elements, uint32_t kind, uint32_t i,
                                     const GlobalTensor<E>& from) {
    CopyIn(elements[(kind * plan_->row_vector + i) * kBlockBytes].template ReinterpretCast<E>(), from, 1);
  }

  // Takes the first element of every block, as the sum over a mask that has this lane only.
  template <class E>
  __aicore__ inline void TakeElements(const LocalTensor<float>& to, const LocalTensor<uint8_t>& elements, uint32_t kind,
                                      uint32_t rows) {
    constexpr uint32_t blocks = sizeof(float) / sizeof(E);  // float32 blocks from one element to the next
    uint64_t first_lanes[2] = {0x0101010101010101, 0};
    LocalTensor<float> from = elements[kind * plan_->row_vector * kBlockBytes].template ReinterpretCast<float>();
    if constexpr (!kIsFloat<E>) {
      const LocalTensor<float> floats =
          elements[RowElement::kKinds * plan_->row_vector * kBlockBytes].ReinterpretCast<float>();
      ToFloats(floats, from.template ReinterpretCast<E>(), CeilTo(rows, kBlockFloats) * kBlockBytes / sizeof(E));
      VectorBarrier();
      from = floats;
    }
    BlockReduceSum(to, from, CeilTo(rows, kBlockFloats) / kBlockFloats, first_lanes, 1, blocks, 8 * blocks);
    VectorBarrier();
  }

  __aicore__ inline uint32_t ColumnsFrom(uint32_t column) const {
    return Least(group_.end - column, plan_->tile_columns);
  }

  __aicore__ inline void ProcessTiles(uint32_t column) {
    const uint32_t columns = ColumnsFrom(column);
    LocalTensor<float> weights;
    if (tiles_.options.weighted) {
      weights = weights_.template AllocTensor<float>();
      CopyIn(weights, weight_[column], columns);
      weights_.EnQue(weights);
      weights = weights_.template DeQue<float>();
    }
    for (uint32_t i = 0; i < group_.rows; ++i) {
      if (IsZero(i)) {
        tiles_.WriteZeros(group_.row + i, 1, column, columns);
      } else {
        ProcessTile(i, column, columns, weights);
        ReadNextTile();
      }
    }
    if (tiles_.options.weighted) {
      weights_.FreeTensor(weights);
    }
  }

  // Reads are ahead of the arithmetic by as many tiles as there are buffers, also while a group's coefficients are
  // computed.
  __aicore__ inline void ReadNextTile() {
    for (; group_.next_column < group_.end; group_.next_column += plan_->tile_columns, group_.next_row = 0) {
      while (group_.next_row < group_.rows) {
        const uint32_t i = group_.next_row++;
        if (!IsZero(i)) {
          tiles_.Read(group_.row + i, 1, group_.next_column, ColumnsFrom(group_.next_column));
          return;
        }
      }
    }
  }

  __aicore__ inline void ProcessTile(uint32_t i, uint32_t column, uint32_t columns, const LocalTensor<float>& weights) {
    BackwardTile<T> tile = tiles_.Take(columns);
    tile.weights = weights;
    ComputeGradient(tile, OneRow(rows_, tiles_.options, i, columns), tiles_.options, tiles_.logits);
    SetTarget(tile.result, i, column, columns);
    tiles_.Write(tile, columns, group_.row + i, 1, column, columns);
  }

  // Writes one lane of one repeat.
  __aicore__ inline void SetTarget(const LocalTensor<float>& result, uint32_t i, uint32_t column, uint32_t columns) {
    const uint32_t y = rows_.Classes().GetValue(i);
    if (y < column || y >= column + columns) {
      return;
    }
    const uint32_t lane = (y - column) % kCeLanes;
    uint64_t mask[2] = {uint64_t(1) << lane, 0};
    Duplicate(result[y - column - lane], rows_.at_target.GetValue(i), mask, 1, 1, 8);
    VectorBarrier();
  }

  // Whether no gradient flows into row i, which is then not read.
  __aicore__ inline bool IsZero(uint32_t i) {
    return tiles_.options.nothing || (tiles_.options.zero_rows && !rows_.Flows(i));
  }

  // The padding is initialised because instructions over a whole group read it, though its results are unused.
  __aicore__ inline void Fill() {
    LocalTensor<uint8_t> elements = elements_.template AllocTensor<uint8_t>();
    FillZeros(elements, plan_->buffers.row_elements);
    elements_.FreeTensor(elements);
  }

  const CeProblem* problem_;
  const CeBackwardPlan* plan_;
  BackwardTiles<T> tiles_;
  BackwardRows rows_;
  GlobalTensor<float> weight_;
  Group group_;
  Queue weights_, elements_;
};

}  // namespace npu_ce
