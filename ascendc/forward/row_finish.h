// SPDX-License-Identifier: Apache-2.0
// Computes all that forward writes of rows from their states, a group of rows at a time: as vectors over the rows,
// without the scalar unit. docs/design.md section 2 has the formulas.
#pragma once

#include "../common/target.h"
#include "row_sums.h"
#include "states.h"
#include "target_weight.h"

namespace npu_ce {

class RowFinish {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, const CeForwardOutputs& outputs,
                              const CeForwardPlan& plan, uint32_t capacity) {
    problem_ = problem;
    outputs_ = outputs;
    options_ = ForwardOptions(problem, outputs);
    capacity_ = capacity;
    per_row_ = problem.reduction == kCeNone;
    sum_rows_ = plan.sum_rows;
    reduces_ = plan.reduces != 0;
    terms_ = plan.reduce_blocks > 0 ? CountTerms(problem) : 0;
    sums_ = SumsOf(problem, plan);
    sums_to_ = InGm<float>(outputs.workspace + plan.sums_offset, terms_ * sums_);
    row_stats_ = InGm<float>(outputs.row_stats, 2 * problem.rows);
    uint32_t present = 0;
    for (uint32_t vector = 0; vector < FinishVector::kVectors; ++vector) {
      at_[vector] = present * capacity;
      present += HasFinishVector(problem, outputs, vector) ? 1 : 0;
    }
    // A sum of one row is the term itself, and the terms are the last vectors.
    sums_at_ = (sum_rows_ > 1 ? present : present - terms_) * capacity;
    sums_pitch_ = FinishBytes::SumsPitch(capacity, sum_rows_);
    const FinishBytes bytes(problem, outputs, capacity, sum_rows_, terms_);
    pipe->InitBuffer(out_, 1, bytes.out);
    pipe->InitBuffer(scratch_, bytes.scratch);
    pipe->InitBuffer(bits_, bytes.bits);
    if (reduces_) {
      row_sums_.Init(pipe, problem, outputs);
    }
  }

  __aicore__ inline void Finish(const States& states, Targets& targets, TargetWeights& weights, uint64_t first,
                                uint32_t rows) {
    count_ = CeilTo(rows, kCeLanes);
    vectors_ = out_.AllocTensor<float>();
    if (problem_.z_loss == 0 && per_row_ && outputs_.z_loss != nullptr) {
      Duplicate(Vector(FinishVector::kZLoss), 0.0f, count_);
    }
    Statistics(states);
    CrossEntropy(states, targets, weights, rows);
    if (problem_.z_loss != 0) {
      ZLoss(targets);
    }
    if (terms_ > 0 || reduces_) {
      SumRows(targets, rows);
    }
    if (outputs_.entropy != nullptr) {
      Div(Vector(FinishVector::kEntropy), states[State::kEntropy], states[State::kSum], count_);
      VectorBarrier();
      Sub(Vector(FinishVector::kEntropy), Vector(FinishVector::kLogSum), Vector(FinishVector::kEntropy), count_);
    }
    if (outputs_.argmax != nullptr) {
      Argmax(states);
    }
    Write(first, rows);
  }

  // After the last group.
  __aicore__ inline void Close() {
    if (reduces_) {
      row_sums_.Finish();
    }
  }

 private:
  // Max, log_sum and lse. In a row of only -inf, max is -inf, and the others are NaN.
  __aicore__ inline void Statistics(const States& states) {
    const LocalTensor<uint8_t> bits = bits_.Get<uint8_t>();
    CompareScalar(bits, states[State::kSum], 0.0f, CMPMODE::NE, count_);
    VectorBarrier();
    Select(states[State::kSum], bits, states[State::kSum], kNan, SELMODE::VSEL_TENSOR_SCALAR_MODE, count_);
    Select(Vector(FinishVector::kMax), bits, states[State::kMax], -kInfinity, SELMODE::VSEL_TENSOR_SCALAR_MODE, count_);
    VectorBarrier();
    Ln(Vector(FinishVector::kLogSum), states[State::kSum], count_);
    VectorBarrier();
    if (outputs_.lse != nullptr || problem_.z_loss != 0) {
      Add(Vector(FinishVector::kLse), Vector(FinishVector::kMax), Vector(FinishVector::kLogSum), count_);
    }
  }

  __aicore__ inline void CrossEntropy(const States& states, Targets& targets, TargetWeights& weights, uint32_t rows) {
    const LocalTensor<float> ce = Vector(FinishVector::kLoss), scratch = scratch_.Get<float>();
    const float smoothing = problem_.label_smoothing;
    Sub(ce, states[State::kTarget], Vector(FinishVector::kMax), count_);
    VectorBarrier();
    Sub(ce, ce, Vector(FinishVector::kLogSum), count_);
    VectorBarrier();
    Muls(ce, ce, smoothing - 1, count_);
    VectorBarrier();
    if (weights.Present()) {
      const LocalTensor<float> weight = weights.Vector(targets.Classes(), rows);
      Mul(ce, ce, weight, count_);
      Select(Vector(FinishVector::kWeight), targets.Counted(), weight, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, count_);
      VectorBarrier();
    }
    if (options_.smoothing) {
      Mul(scratch, states[State::kWeights], Vector(FinishVector::kLogSum), count_);
      VectorBarrier();
      Sub(scratch, states[State::kWeighted], scratch, count_);
      VectorBarrier();
      Muls(scratch, scratch, -smoothing / AsFloat(problem_.classes), count_);
      VectorBarrier();
      Add(ce, ce, scratch, count_);
      VectorBarrier();
    }
    Select(ce, targets.Valid(), ce, kNan, SELMODE::VSEL_TENSOR_SCALAR_MODE, count_);
    VectorBarrier();
    // Selected, not multiplied: an ignored row may hold NaN.
    Select(ce, targets.Counted(), ce, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, count_);
    VectorBarrier();
  }

  __aicore__ inline void ZLoss(Targets& targets) {
    const LocalTensor<float> z = Vector(FinishVector::kZLoss);
    Mul(z, Vector(FinishVector::kLse), Vector(FinishVector::kLse), count_);
    VectorBarrier();
    Muls(z, z, problem_.z_loss, count_);
    VectorBarrier();
    Select(z, targets.Counted(), z, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, count_);
    VectorBarrier();
    if (per_row_) {
      Add(Vector(FinishVector::kLoss), Vector(FinishVector::kLoss), z, count_);
      VectorBarrier();
    }
  }

  // For the reduction, by another launch or (`reduces_`) by this one. Lanes behind the last row add nothing.
  __aicore__ inline void SumRows(Targets& targets, uint32_t rows) {
    Duplicate(Vector(FinishVector::kCount), 1.0f, count_);
    VectorBarrier();
    Select(Vector(FinishVector::kCount), targets.Counted(), Vector(FinishVector::kCount), 0.0f,
           SELMODE::VSEL_TENSOR_SCALAR_MODE, count_);
    if (sum_rows_ == 1 && !reduces_) {
      return;
    }
    VectorBarrier();
    LocalTensor<float> sums = vectors_[sums_at_];
    for (uint32_t term = 0; term < SumTerm::kTerms; ++term) {
      if (HasTerm(problem_, term) && reduces_) {
        row_sums_.Add(term, Vector(FinishVector::kTerms + term), rows);
      } else if (HasTerm(problem_, term)) {
        FillTail(Vector(FinishVector::kTerms + term), rows, 0.0f);
        SumBlocks(sums, Vector(FinishVector::kTerms + term));
        sums = sums[sums_pitch_];
      }
    }
  }

  __aicore__ inline void SumBlocks(const LocalTensor<float>& sums, const LocalTensor<float>& vector) {
    const uint32_t repeats = count_ / kCeLanes;
    if (sum_rows_ == kCeLanes) {
      WholeReduceSum(sums, vector, kCeLanes, repeats, 1, 1, 8);
    } else if (sum_rows_ == kBlockFloats) {
      BlockReduceSum(sums, vector, repeats, kCeLanes, 1, 1, 8);
    } else {
      PairReduceSum(sums, vector, repeats, kCeLanes, 1, 1, 8);
    }
  }

  // A NaN comes before any max, as in torch; a row of only -inf has its max in column 0.
  __aicore__ inline void Argmax(const States& states) {
    const LocalTensor<uint8_t> bits = bits_.Get<uint8_t>();
    const LocalTensor<float> column = scratch_.Get<float>();
    CompareScalar(bits, states[State::kArgmax], kNoColumn, CMPMODE::LT, count_);
    VectorBarrier();
    Select(column, bits, states[State::kArgmax], 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, count_);
    CompareScalar(bits, states[State::kFirstNan], kNoColumn, CMPMODE::LT, count_);
    VectorBarrier();
    Select(column, bits, states[State::kFirstNan], column, SELMODE::VSEL_TENSOR_TENSOR_MODE, count_);
    VectorBarrier();
    Cast(Vector(FinishVector::kArgmax).ReinterpretCast<int64_t>(), column, RoundMode::CAST_RINT, count_);
  }

  __aicore__ inline void Write(uint64_t first, uint32_t rows) {
    if (per_row_) {
      Round(FinishVector::kLoss);
      if (outputs_.z_loss != nullptr) {
        Round(FinishVector::kZLoss);
      }
    }
    out_.EnQue(vectors_);
    vectors_ = out_.DeQue<float>();
    CopyRowsOut(row_stats_[first], Vector(FinishVector::kMax), 2, rows, problem_.rows, capacity_);
    if (outputs_.lse != nullptr) {
      WriteVector(outputs_.lse, FinishVector::kLse, first, rows);
    }
    if (outputs_.entropy != nullptr) {
      WriteVector(outputs_.entropy, FinishVector::kEntropy, first, rows);
    }
    if (outputs_.argmax != nullptr) {
      CopyOut(InGm<int64_t>(outputs_.argmax, problem_.rows)[first],
              Vector(FinishVector::kArgmax).ReinterpretCast<int64_t>(), rows);
    }
    if (terms_ > 0) {
      CopyRowsOut(sums_to_[first / sum_rows_], vectors_[sums_at_], terms_, (rows + sum_rows_ - 1) / sum_rows_, sums_,
                  sums_pitch_);
    }
    if (per_row_) {
      WriteRounded(outputs_.loss, FinishVector::kLoss, first, rows);
      if (outputs_.z_loss != nullptr) {
        WriteRounded(outputs_.z_loss, FinishVector::kZLoss, first, rows);
      }
    }
    out_.FreeTensor(vectors_);
  }

  // Rounds a vector to loss_dtype, in place.
  __aicore__ inline void Round(uint32_t which) {
    if (outputs_.loss_dtype == kCeFloat32) {
      return;
    }
    const LocalTensor<float> scratch = scratch_.Get<float>();
    Adds(scratch, Vector(which), 0.0f, count_);
    VectorBarrier();
    if (outputs_.loss_dtype == kCeFloat16) {
      FromFloats(Vector(which).ReinterpretCast<half>(), scratch, count_);
    } else {
      FromFloats(Vector(which).ReinterpretCast<bfloat16_t>(), scratch, count_);
    }
  }

  __aicore__ inline void WriteVector(float* to, uint32_t which, uint64_t first, uint32_t rows) {
    CopyOut(InGm<float>(to, problem_.rows)[first], Vector(which), rows);
  }

  __aicore__ inline void WriteRounded(void* to, uint32_t which, uint64_t first, uint32_t rows) {
    if (outputs_.loss_dtype == kCeFloat32) {
      WriteVector(static_cast<float*>(to), which, first, rows);
    } else {  // or bfloat16: 2 bytes
      CopyOut(InGm<half>(to, problem_.rows)[first], Vector(which).ReinterpretCast<half>(), rows);
    }
  }

  __aicore__ inline LocalTensor<float> Vector(uint32_t which) const { return vectors_[at_[which]]; }

  static constexpr float kNan = __builtin_nanf("");

  CeProblem problem_;
  CeForwardOutputs outputs_;
  ForwardOptions options_;
  bool per_row_, reduces_;
  uint32_t capacity_, sum_rows_, terms_, sums_at_, sums_pitch_;
  uint64_t sums_;  // their number for each term, in GM
  GlobalTensor<float> row_stats_, sums_to_;
  uint32_t at_[FinishVector::kVectors];
  uint32_t count_;
  LocalTensor<float> vectors_;
  TQue<QuePosition::VECOUT, 1> out_;
  TBuf<QuePosition::VECCALC> scratch_, bits_;
  RowSums row_sums_;
};

}  // namespace npu_ce
