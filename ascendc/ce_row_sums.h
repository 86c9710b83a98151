// SPDX-License-Identifier: Apache-2.0
// Sums over rows, in 64 lanes for each of four numbers until the end. What a row adds comes from the workspace (its ce
// and weight), from row_stats (its z-loss) and from its target (whether it counts).
#pragma once

#include "ce_target.h"

namespace npu_ce {

class RowSums {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, const CeForwardOutputs& outputs,
                              const CeForwardPlan& plan) {
    problem_ = problem;
    outputs_ = outputs;
    rows_of_block_ = plan.reduce_rows;
    blocks_ = plan.reduce_blocks;
    partials_ = InGm<float>(outputs.workspace + plan.partials_offset, uint64_t(blocks_) * kCeReduceSums);
    ce_ = InGm<float>(outputs.workspace + plan.row_terms_offset, problem.rows);
    weight_ = InGm<float>(outputs.workspace + plan.row_terms_offset + problem.rows, problem.rows);
    max_ = InGm<float>(outputs.row_stats, problem.rows);
    log_sum_ = InGm<float>(outputs.row_stats + problem.rows, problem.rows);
    targets_.Init(pipe, problem, kRows);
    pipe->InitBuffer(in_, 1, kRows * sizeof(float));
    pipe->InitBuffer(terms_, kRows * sizeof(float));
    pipe->InitBuffer(lse_, kRows * sizeof(float));
    pipe->InitBuffer(lanes_, kTerms * kCeLanes * sizeof(float));
    pipe->InitBuffer(sums_, kCeReduceSums * sizeof(float));
    pipe->InitBuffer(results_, 3 * kCeLanes * sizeof(float));
    pipe->InitBuffer(out_, 1, 2 * kBlockBytes);
    LocalTensor<float> in = in_.AllocTensor<float>();
    Duplicate(in, 0.0f, kRows);
    in_.FreeTensor(in);
    Duplicate(lanes_.Get<float>(), 0.0f, kTerms * kCeLanes);
    Duplicate(sums_.Get<float>(), 0.0f, kCeReduceSums);
    VectorBarrier();
  }

  __aicore__ inline void AddRows(uint32_t block) {
    const uint64_t begin = uint64_t(block) * rows_of_block_;
    const uint64_t left = problem_.rows - begin, end = begin + (left < rows_of_block_ ? left : rows_of_block_);
    for (uint64_t row = begin; row < end; row += kRows) {
      AddChunk(row, Least(end - row, kRows));
    }
    const LocalTensor<float> lanes = lanes_.Get<float>(), sums = sums_.Get<float>();
    WholeReduceSum(sums, lanes, kCeLanes, 2, 1, 1, 8);
    WholeReduceSum(sums[kBlockFloats], lanes[2 * kCeLanes], kCeLanes, 2, 1, 1, 8);
    VectorBarrier();
  }

  __aicore__ inline void WritePartial(uint32_t block) {
    Order<HardEvent::V_MTE3>();
    CopyOut(partials_[uint64_t(block) * kCeReduceSums], sums_.Get<float>(), kCeReduceSums);
  }

  // Of the blocks' sums a repeat holds four: they are folded onto the first repeat, and then within it.
  __aicore__ inline void AddPartials() {
    const LocalTensor<float> sums = sums_.Get<float>(), terms = terms_.Get<float>();
    for (uint32_t first = 0; first < blocks_; first += kPartials) {
      const uint32_t count = Least(blocks_ - first, kPartials) * kCeReduceSums;
      Read(terms, partials_[uint64_t(first) * kCeReduceSums], count);
      Fold<SumOf>(terms, Repeats(count));
      for (uint32_t half = kCeLanes / 2; half >= kCeReduceSums; half /= 2) {
        Add(terms, terms, terms[half], half);
        VectorBarrier();
      }
      Add(sums, sums, terms, kCeReduceSums);
      VectorBarrier();
    }
  }

  __aicore__ inline void Finish() {
    const LocalTensor<float> sums = sums_.Get<float>(), over = results_.Get<float>();
    const LocalTensor<float> loss = over[kCeLanes], z_loss = over[2 * kCeLanes];
    Duplicate(over, 0.0f, 3 * kCeLanes);
    VectorBarrier();
    if (problem_.reduction == kCeMean) {
      Div(over, sums[kBlockFloats], sums, 2);
    } else {
      Adds(over, sums[kBlockFloats], 0.0f, 2);
    }
    VectorBarrier();
    uint64_t second[2] = {2, 0};
    WholeReduceSum(loss, over, 2, 1, 1, 1, 8);
    WholeReduceSum(z_loss, over, second, 1, 1, 1, 8);
    VectorBarrier();
    if (outputs_.denominators != nullptr) {
      Order<HardEvent::V_MTE3>();
      CopyOut(InGm<float>(outputs_.denominators, 2), sums, 2);
    }
    if (problem_.reduction == kCeNone) {
      return;
    }
    if (outputs_.loss_dtype == kCeFloat32) {
      WriteResults<float>(loss, z_loss);
    } else if (outputs_.loss_dtype == kCeFloat16) {
      WriteResults<half>(loss, z_loss);
    } else {
      WriteResults<bfloat16_t>(loss, z_loss);
    }
  }

 private:
  // Their order in lanes and sums: denominators in the first block, numerators in the second.
  enum Term : uint32_t { kWeightTerm, kCountTerm, kCeTerm, kZTerm, kTerms };

  static constexpr uint32_t kRows = 2048;
  static constexpr uint32_t kPartials = kRows / kCeReduceSums;

  __aicore__ inline void AddChunk(uint64_t row, uint32_t rows) {
    const LocalTensor<float> terms = terms_.Get<float>(), lse = lse_.Get<float>();
    const uint32_t count = CeilTo(rows, kCeLanes);
    targets_.Load(row, rows);
    if (problem_.reduction != kCeNone) {
      Read(terms, ce_[row], rows);
      AddTerms(kCeTerm, rows);
      if (problem_.z_loss != 0) {
        Read(lse, max_[row], rows);
        Read(terms, log_sum_[row], rows);
        Add(terms, terms, lse, count);
        VectorBarrier();
        Mul(terms, terms, terms, count);
        VectorBarrier();
        Muls(terms, terms, problem_.z_loss, count);
        VectorBarrier();
        AddCounted(kZTerm, rows);
      }
    }
    if (problem_.weight != nullptr) {
      Read(terms, weight_[row], rows);
      AddTerms(kWeightTerm, rows);
    } else {
      Duplicate(terms, 1.0f, count);
      VectorBarrier();
      AddCounted(kWeightTerm, rows);
    }
    Duplicate(terms, 1.0f, count);
    VectorBarrier();
    AddCounted(kCountTerm, rows);
  }

  // Of the rows that count.
  __aicore__ inline void AddCounted(Term term, uint32_t rows) {
    const LocalTensor<float> terms = terms_.Get<float>();
    Select(terms, targets_.Counted(), terms, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, CeilTo(rows, kCeLanes));
    VectorBarrier();
    AddTerms(term, rows);
  }

  __aicore__ inline void AddTerms(Term term, uint32_t rows) {
    const LocalTensor<float> terms = terms_.Get<float>(), lanes = lanes_.Get<float>()[term * kCeLanes];
    FillTail(terms, rows, 0.0f);
    Fold<SumOf>(terms, Repeats(rows));
    Add(lanes, lanes, terms, kCeLanes);
    VectorBarrier();
  }

  // Whole repeats: 0 behind `count`.
  __aicore__ inline void Read(const LocalTensor<float>& to, const GlobalTensor<float>& from, uint32_t count) {
    LocalTensor<float> in = in_.AllocTensor<float>();
    CopyIn(in, from, count);
    in_.EnQue(in);
    in = in_.DeQue<float>();
    FillTail(in, count, 0.0f);
    Adds(to, in, 0.0f, CeilTo(count, kCeLanes));
    VectorBarrier();
    in_.FreeTensor(in);
  }

  template <class L>
  __aicore__ inline void WriteResults(const LocalTensor<float>& loss, const LocalTensor<float>& z_loss) {
    LocalTensor<L> out = out_.AllocTensor<L>();
    const LocalTensor<L> second = out[kBlockBytes / sizeof(L)];
    FromFloats(out, loss, 1);
    FromFloats(second, z_loss, 1);
    out_.EnQue(out);
    out = out_.DeQue<L>();
    CopyOut(InGm<L>(outputs_.loss, 1), out, 1);
    if (outputs_.z_loss != nullptr) {
      CopyOut(InGm<L>(outputs_.z_loss, 1), second, 1);
    }
    out_.FreeTensor(out);
  }

  CeProblem problem_;
  CeForwardOutputs outputs_;
  uint32_t rows_of_block_, blocks_;
  GlobalTensor<float> partials_, ce_, weight_, max_, log_sum_;
  Targets targets_;
  TQue<QuePosition::VECIN, 1> in_;
  TQue<QuePosition::VECOUT, 1> out_;
  TBuf<QuePosition::VECCALC> terms_, lse_, lanes_, sums_, results_;
};

}  // namespace npu_ce
