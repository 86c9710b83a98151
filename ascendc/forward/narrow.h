// SPDX-License-Identifier: Apache-2.0
// Forward in the narrow layout: rows so short that a tile has many of them. A row is whole in UB, so its max is known
// before its first exp, and log_prob is written from the same tile.
#pragma once

#include "../common/logits.h"
#include "row_finish.h"
#include "row_tile.h"

namespace npu_ce {

template <class T>
class NarrowForward {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, const CeForwardOutputs& outputs,
                              const CeForwardPlan& plan) {
    problem_ = problem;
    tiling_ = plan.forward;
    options_ = ForwardOptions(problem, outputs);
    input_ = InGm<T>(problem.input, (problem.rows - 1) * problem.row_stride + problem.classes);
    log_prob_ = InGm<T>(outputs.log_prob, problem.rows * problem.classes);
    sum_rows_ = plan.sum_rows;
    const uint32_t group = tiling_.group_units;
    const NarrowBytes bytes(options_, sizeof(T), tiling_.pitch, tiling_.tile_rows, tiling_.step_rows);
    pipe->InitBuffer(in_, NarrowBytes::kInputTiles, bytes.in);
    if (bytes.floats > 0) pipe->InitBuffer(floats_, bytes.floats);
    if (bytes.exponentials > 0) pipe->InitBuffer(exponentials_, bytes.exponentials);
    if (bytes.out > 0) pipe->InitBuffer(out_, 1, bytes.out);
    if (bytes.terms > 0) pipe->InitBuffer(terms_, bytes.terms);
    rows_.Init(pipe, problem.classes, tiling_.pitch, tiling_.step_rows);  // where chunks begin as those of the tiles do
    pipe->InitBuffer(row_offsets_, bytes.row);
    pipe->InitBuffer(offsets_, bytes.row);
    pipe->InitBuffer(log_sums_, bytes.row);
    if (options_.argmax) {
      pipe->InitBuffer(index_, bytes.index);
      pipe->InitBuffer(bits_, bytes.bits);
    }
    begin_ = next_ = FirstRow(GetBlockIdx());
    end_ = FirstRow(GetBlockIdx() + 1);
    targets_.Init(pipe, problem, group);
    targets_.Read(begin_, RowsFrom(begin_, group));
    FillTiles();
    FetchNext();  // what follows is done during the copy
    if (options_.argmax) {
      CountUp(index_.Get<float>(), tiling_.pitch);
    }
    CountBytes(row_offsets_.Get<int32_t>(), tiling_.pitch * sizeof(float), tiling_.step_rows);
    logits_.Init(pipe, problem);
    states_.Init(pipe, options_, group);
    target_weights_.Init(pipe, problem, group);
    finish_.Init(pipe, problem, outputs, plan, group);
    if (options_.smoothing) {
      SumWeights();
    }
  }

  __aicore__ inline void Process() {
    for (uint64_t first = begin_; first < end_; first += tiling_.group_units) {
      const uint32_t rows = RowsFrom(first, tiling_.group_units);
      targets_.Find(rows);
      if (first + rows < end_) {
        targets_.Read(first + rows, RowsFrom(first + rows, tiling_.group_units));
      }
      for (uint32_t row = 0; row < rows; row += tiling_.tile_rows) {
        RunTile(first + row, row, Least(rows - row, tiling_.tile_rows));
      }
      finish_.Finish(states_, targets_, target_weights_, first, rows);
    }
    finish_.Close();
    target_weights_.Close();
  }

 private:
  // The first row of a core: rows are dealt out in whole sums.
  __aicore__ inline uint64_t FirstRow(uint64_t core) const {
    const uint64_t sums = (problem_.rows + sum_rows_ - 1) / sum_rows_, row = sums * core / GetBlockNum() * sum_rows_;
    return row < problem_.rows ? row : problem_.rows;
  }
  __aicore__ inline uint32_t RowsFrom(uint64_t row, uint32_t most) const {
    return end_ - row < most ? static_cast<uint32_t>(end_ - row) : most;
  }

  // Instructions read rows without logits too, and what lies between one row's end and the next. So this zeros what the
  // copy of each buffer's first tile does not write, and no more than that, since the copy waits for it.
  __aicore__ inline void FillTiles() {
    LocalTensor<T> tiles[2] = {in_.template AllocTensor<T>(), in_.template AllocTensor<T>()};
    for (uint32_t i = 0; i < 2; ++i) {
      const uint64_t first = begin_ + i * tiling_.tile_rows;
      if (first < end_) {
        rows_.FillBehind(tiles[i], RowsFrom(first, tiling_.tile_rows));
      }
    }
    in_.FreeTensor(tiles[0]);
    in_.FreeTensor(tiles[1]);
  }

  // The sum of all weights is the same for every row.
  __aicore__ inline void SumWeights() {
    float sum = AsFloat(problem_.classes);
    if (options_.weights) {
      const LocalTensor<float> terms = terms_.Get<float>(), total = log_sums_.Get<float>();
      FoldInto<SumOf>(terms, target_weights_.All(), Repeats(problem_.classes));
      WholeReduceSum(total, terms, kCeLanes, 1, 1, 1, 8);
      Order<HardEvent::V_S>();
      sum = total.GetValue(0);
      Order<HardEvent::S_V>();
    }
    Duplicate(states_[State::kWeights], sum, tiling_.group_units);
  }

  // Begins to copy the tile at next_, and moves next_ on.
  __aicore__ inline void FetchNext() {
    if (next_ == end_) {
      return;
    }
    const uint32_t in_group = (next_ - begin_) % tiling_.group_units;
    const uint32_t rows = RowsFrom(next_, Least(tiling_.tile_rows, tiling_.group_units - in_group));
    LocalTensor<T> tile = in_.template AllocTensor<T>();
    CopyRowsIn(tile, input_[next_ * problem_.row_stride], rows, problem_.classes, problem_.row_stride, tiling_.pitch);
    in_.EnQue(tile);
    next_ += rows;
  }

  // `rows` rows from `first` on, whose place in the group is `at`.
  __aicore__ inline void RunTile(uint64_t first, uint32_t at, uint32_t rows) {
    LocalTensor<T> tile = in_.template DeQue<T>();
    FetchNext();
    for (uint32_t row = 0; row < rows; row += tiling_.step_rows) {
      rows_.SetRows(Least(rows - row, tiling_.step_rows));
      RunStep(tile[row * tiling_.pitch], row, at + row);
    }
    in_.FreeTensor(tile);
    if (options_.log_prob) {
      out_.EnQue(log_probs_);
      log_probs_ = out_.template DeQue<T>();
      CopyRowsOut(log_prob_[first * problem_.classes], log_probs_, rows, problem_.classes, tiling_.pitch);
      out_.FreeTensor(log_probs_);
    }
  }

  // The rows from `row` on of a tile, whose place in the group is `at`.
  __aicore__ inline void RunStep(const LocalTensor<T>& tile, uint32_t row, uint32_t at) {
    const LocalTensor<float> x = Floats(tile);
    logits_.Transform(x, rows_.Count());
    rows_.FillTails(x, -kInfinity);
    GatherTargets(x, at);
    const LocalTensor<float> max = states_[State::kMax][at], sum = states_[State::kSum][at];
    rows_.Max(max, x);
    Maxs(max, max, -kLargestFloat, rows_.Rows());
    VectorBarrier();
    if (options_.argmax) {
      FindColumns(x, at);
    }
    rows_.Subtract(x, x, max);
    if (options_.smoothing) {
      SumWeighted(x, at);
    }
    const bool separate = options_.log_prob || options_.entropy;
    const LocalTensor<float> e = separate ? exponentials_.Get<float>() : x;
    Exp(e, x, rows_.Count());
    VectorBarrier();
    rows_.Sum(sum, e);
    if (options_.entropy) {
      SumEntropy(x, e, at);
    }
    if (options_.log_prob) {
      LogProb(x, sum, row);
    }
  }

  __aicore__ inline LocalTensor<float> Floats(const LocalTensor<T>& tile) {
    if constexpr (kIsFloat<T>) {
      return tile;
    } else {
      ToFloats(floats_.Get<float>(), tile, rows_.Count());
      VectorBarrier();
      return floats_.Get<float>();
    }
  }

  __aicore__ inline void GatherTargets(const LocalTensor<float>& x, uint32_t at) {
    const uint32_t rows = rows_.Rows();
    const LocalTensor<int32_t> offsets = offsets_.Get<int32_t>();
    ShiftLeft(offsets, targets_.Classes()[at], int32_t(2), rows);
    VectorBarrier();
    Add(offsets, offsets, row_offsets_.Get<int32_t>(), rows);
    VectorBarrier();
    Gather(states_[State::kTarget][at], x, offsets.ReinterpretCast<uint32_t>(), 0, rows);
  }

  __aicore__ inline void FindColumns(const LocalTensor<float>& x, uint32_t at) {
    const LocalTensor<float> found = terms_.Get<float>(), columns = index_.Get<float>();
    rows_.SelectEqual(found, x, states_[State::kMax][at], columns, false, kNoColumn, bits_.Get<uint8_t>());
    rows_.Min(states_[State::kArgmax][at], found);
    rows_.SelectNan(found, x, columns, kNoColumn, bits_.Get<uint8_t>());
    rows_.Min(states_[State::kFirstNan][at], found);
  }

  __aicore__ inline void SumWeighted(const LocalTensor<float>& shift, uint32_t at) {
    rows_.FillTails(shift, 0.0f);
    if (options_.weights) {
      rows_.MultiplyColumns(terms_.Get<float>(), shift, target_weights_.All());
      rows_.Sum(states_[State::kWeighted][at], terms_.Get<float>());
    } else {
      rows_.Sum(states_[State::kWeighted][at], shift);
    }
    rows_.FillTails(shift, -kInfinity);
  }

  __aicore__ inline void SumEntropy(const LocalTensor<float>& shift, const LocalTensor<float>& e, uint32_t at) {
    const LocalTensor<float> terms = terms_.Get<float>();
    Maxs(terms, shift, -kExponentOfZero, rows_.Count());
    VectorBarrier();
    Mul(terms, terms, e, rows_.Count());
    VectorBarrier();
    rows_.Sum(states_[State::kEntropy][at], terms);
  }

  __aicore__ inline void LogProb(const LocalTensor<float>& shift, const LocalTensor<float>& sum, uint32_t row) {
    const LocalTensor<float> log_sums = log_sums_.Get<float>();
    Ln(log_sums, sum, CeilTo(rows_.Rows(), kBlockFloats));  // as many as Subtract spreads
    VectorBarrier();
    if (row == 0) {  // not earlier, since this waits for the copy of the tile before
      log_probs_ = out_.template AllocTensor<T>();
    }
    const LocalTensor<T> out = log_probs_[row * tiling_.pitch];
    if constexpr (kIsFloat<T>) {
      rows_.Subtract(out, shift, log_sums);
    } else {
      rows_.Subtract(shift, shift, log_sums);
      FromFloats(out, shift, rows_.Count());
    }
  }

  CeProblem problem_;
  CeForwardTiling tiling_;
  ForwardOptions options_;
  uint32_t sum_rows_;
  uint64_t begin_, next_, end_;
  GlobalTensor<T> input_, log_prob_;
  LocalTensor<T> log_probs_;
  TQue<QuePosition::VECIN, 1> in_;
  TQue<QuePosition::VECOUT, 1> out_;
  TBuf<QuePosition::VECCALC> floats_, exponentials_, terms_, row_offsets_, offsets_, log_sums_, index_, bits_;
  Logits logits_;
  RowTile rows_;
  States states_;
  Targets targets_;
  TargetWeights target_weights_;
  RowFinish finish_;
};

}  // namespace npu_ce
