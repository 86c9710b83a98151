// SPDX-License-Identifier: Apache-2.0
// The sums over the rows, kept in 64 lanes for each term until the end, and the loss and the denominators that are
// computed from them.
#pragma once

#include "../common/lanes.h"
#include "../ub/forward.h"

namespace npu_ce {

// How many sums a term has in the workspace: one for every `sum_rows` rows, the last one for the rows that are left.
__aicore__ inline uint64_t SumsOf(const CeProblem& problem, const CeForwardPlan& plan) {
  return (problem.rows + plan.sum_rows - 1) / plan.sum_rows;
}

class RowSums {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, const CeForwardOutputs& outputs) {
    problem_ = problem;
    outputs_ = outputs;
    pipe->InitBuffer(lanes_, RowSumBytes::lanes);
    pipe->InitBuffer(sums_, RowSumBytes::sums);
    pipe->InitBuffer(out_, 1, RowSumBytes::out);
    Duplicate(lanes_.Get<float>(), 0.0f, SumTerm::kTerms * kCeLanes);
    VectorBarrier();
  }

  // Adds the `count` values of a term's vector, which is overwritten.
  __aicore__ inline void Add(uint32_t term, const LocalTensor<float>& vector, uint32_t count) {
    const LocalTensor<float> lanes = lanes_.Get<float>()[term * kCeLanes];
    FillTail(vector, count, 0.0f);
    Fold<SumOf>(vector, Repeats(count));
    AscendC::Add(lanes, lanes, vector, kCeLanes);
    VectorBarrier();
  }

  // Writes each term's sum as element `at` of a vector of `length` elements.
  __aicore__ inline void WritePartial(float* vectors, uint64_t length, uint64_t at) {
    AddUpLanes();
    Order<HardEvent::V_MTE3>();
    for (uint32_t term = 0; term < SumTerm::kTerms; ++term) {
      if (HasTerm(problem_, term)) {
        CopyOut(InGm<float>(vectors, length)[at], Sum(term), 1);
        vectors += length;
      }
    }
  }

  __aicore__ inline void Finish() {
    AddUpLanes();
    if (problem_.weight == nullptr) {
      Adds(Sum(SumTerm::kWeight), Sum(SumTerm::kCount), 0.0f, 1);
      VectorBarrier();
    }
    if (outputs_.denominators != nullptr) {
      Order<HardEvent::V_MTE3>();
      CopyRowsOut(InGm<float>(outputs_.denominators, 2), Sum(SumTerm::kWeight), 2, 1, kBlockFloats);
    }
    if (problem_.reduction == kCeNone) {
      return;
    }
    if (problem_.reduction == kCeMean) {
      Div(Sum(SumTerm::kCe), Sum(SumTerm::kCe), Sum(SumTerm::kWeight), 1);
      if (HasZLoss()) {
        Div(Sum(SumTerm::kZ), Sum(SumTerm::kZ), Sum(SumTerm::kCount), 1);
      }
      VectorBarrier();
    }
    if (HasZLoss()) {
      AscendC::Add(Sum(SumTerm::kCe), Sum(SumTerm::kCe), Sum(SumTerm::kZ), 1);
      VectorBarrier();
    }
    if (outputs_.loss_dtype == kCeFloat32) {
      WriteResults<float>();
    } else if (outputs_.loss_dtype == kCeFloat16) {
      WriteResults<half>();
    } else {
      WriteResults<bfloat16_t>();
    }
  }

 private:
  __aicore__ inline LocalTensor<float> Sum(uint32_t term) { return sums_.Get<float>()[term * kBlockFloats]; }

  __aicore__ inline bool HasZLoss() const { return problem_.z_loss != 0 || outputs_.z_loss != nullptr; }

  __aicore__ inline void AddUpLanes() {
    WholeReduceSum(sums_.Get<float>(), lanes_.Get<float>(), kCeLanes, SumTerm::kTerms, kBlockFloats, 1, 8);
    VectorBarrier();
  }

  template <class L>
  __aicore__ inline void WriteResults() {
    LocalTensor<L> out = out_.AllocTensor<L>();
    const LocalTensor<L> second = out[kBlockBytes / sizeof(L)];
    FromFloats(out, Sum(SumTerm::kCe), 1);
    if (HasZLoss()) {
      FromFloats(second, Sum(SumTerm::kZ), 1);
    }
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
  TQue<QuePosition::VECOUT, 1> out_;
  TBuf<QuePosition::VECCALC> lanes_;
  TBuf<QuePosition::VECOUT> sums_;  // copies to GM come from VECOUT (page DataCopyPad)
};

}  // namespace npu_ce
