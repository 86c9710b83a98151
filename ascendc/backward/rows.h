// SPDX-License-Identifier: Apache-2.0
// The coefficients of each row's gradient, for a group of rows at once: vectors over the rows, no scalars.
//
// With d = x' - max, S = exp(log_sum), and docs/design.md's t, r, b and u, the gradient of a class is
//
//     exp(d) * (spread + slope * d) - smooth * w[c] + grad_log_prob[c],
//     spread = (t + r - b * log_sum) / S,   slope = b / S,   smooth = u,
//
// which takes one operation an element less than exp((x' - max) - log_sum) does, and rounds less. S >= 1, so exp(d)
// does not underflow before p does. The gradient of the target is at_target.
#pragma once

#include "../common/logits.h"
#include "../common/target.h"
#include "row_inputs.h"

namespace npu_ce {

class BackwardRows {
 public:
  using Floats = LocalTensor<float>;

  __aicore__ inline void Init(TPipe* pipe, const CeProblem* problem, const CeGradients* gradients,
                              const CeBackwardPlan* plan, const BackwardOptions* options, Logits* logits) {
    problem_ = problem;
    options_ = options;
    logits_ = logits;
    length_ = plan->row_vector;
    inputs_.Init(pipe, *problem, *gradients, *plan);
    targets_.Init(pipe, *problem, length_, plan->row_buffers);
    pipe->InitBuffer(buffer_, plan->buffers.row_vectors);
    TakeVectors(plan->buffers.row_vectors / sizeof(float));
  }

  __aicore__ inline void SetWeightTotal(float total) { weight_total_ = total; }

  // Begins to read a group's targets and inputs; with two buffers, those of the group after the current one.
  __aicore__ inline void Read(uint64_t row, uint32_t rows) {
    targets_.Read(row, rows);
    inputs_.Load(row, rows);
  }
  // Finds the targets of the current group: Classes() is known afterwards.
  __aicore__ inline void FindTargets(uint32_t rows) {
    math_.SetRows(rows);
    inputs_.Begin();
    targets_.Find(rows);
    if (options_->others && options_->zero_rows) FindFlowing();
  }
  __aicore__ inline LocalTensor<int32_t> Classes() { return targets_.Classes(); }
  // Two vectors that are free between BeginWork and Work.
  __aicore__ inline LocalTensor<int32_t> Scratch() const { return term_.ReinterpretCast<int32_t>(); }
  __aicore__ inline LocalTensor<int32_t> MoreScratch() const { return more_.ReinterpretCast<int32_t>(); }

  // Computes what depends on the rows' inputs alone, while the four vectors that the caller fills are being fetched.
  __aicore__ inline void BeginWork() {
    const Floats max = inputs_.Get(RowInput::kMax), log_sum = inputs_.Get(RowInput::kLogSum);
    FromLoss(max, log_sum);
    if (problem_->weight == nullptr) SelectRows();
    math_.Multiply(offset, max, -1.0f);
  }

  // Computes the vectors that a tile needs, once the caller has filled its four.
  __aicore__ inline void Work() {
    const float slope_scale = logits_->SlopeScale();
    const Floats log_sum = inputs_.Get(RowInput::kLogSum);
    if (problem_->weight != nullptr) {
      if (inputs_.Has(RowInput::kLossGradient)) math_.Multiply(spread, spread, class_weight);
      SelectRows();
    }
    FromOthers();
    LogProbOfTarget(log_sum);
    GradientOfTarget();

    if (options_->rest) math_.Add(spread, spread, rest_);
    math_.Multiply(term_, log_sum, -1.0f);
    math_.Exp(term_, term_);
    if (slope_scale != 1) math_.Multiply(term_, term_, slope_scale);
    if (options_->entropy) {
      math_.Multiply(more_, slope, log_sum);
      math_.Subtract(spread, spread, more_);
      math_.Multiply(slope, slope, term_);
    }
    math_.Multiply(spread, spread, term_);
    if (options_->folds_max) {
      math_.Exp(term_, offset);
      math_.Multiply(spread, spread, term_);
    }
    if (options_->smooth) math_.Multiply(smooth, smooth, slope_scale);
    inputs_.End();
  }

  // The targets as float32, exact below 2^24. Overwrites the logit.
  __aicore__ inline Floats ClassNumbers() {
    Cast(logit, Classes(), RoundMode::CAST_NONE, math_.Count());
    VectorBarrier();
    return logit;
  }

  // 0 for rows into which no gradient flows, else -1: no bits or all. Overwrites the logit.
  __aicore__ inline LocalTensor<int32_t> KeepFlowing() {
    math_.Fill(logit, -1.0f);
    math_.Select(logit, Flowing(), logit, 0.0f);
    const LocalTensor<int32_t> keep = term_.ReinterpretCast<int32_t>();
    Cast(keep, logit, RoundMode::CAST_RINT, math_.Count());
    VectorBarrier();
    return keep;
  }
  // For the scalar unit.
  __aicore__ inline bool Flows(uint32_t i) { return (Flowing().GetValue(i / 8) >> (i % 8) & 1) != 0; }

  // For the caller to fill: at the target, the logit, the weight and the gradient of log_prob; and the row's sum of the
  // latter.
  Floats logit;
  Floats class_weight;
  Floats class_log_prob;
  Floats log_prob_sum;

  // For a tile's arithmetic. `offset` plus what TransformBelowCap leaves is x' - max.
  Floats offset;
  Floats spread;
  Floats slope;
  Floats smooth;
  Floats at_target;

 private:
  // A bit for each row into which a gradient flows. Only where `zero_rows`.
  __aicore__ inline LocalTensor<uint8_t> Flowing() {
    return options_->others ? targets_.Scratch() : targets_.Counted();
  }

  // A gradient flows into rows that count, and into those whose gradient of lse or of entropy is not 0; NaN is not 0.
  __aicore__ inline void FindFlowing() {
    const LocalTensor<uint8_t> bits = targets_.Scratch();
    math_.Fill(term_, 0.0f);
    math_.Fill(more_, 1.0f);
    math_.Select(more_, targets_.Counted(), more_, 0.0f);
    for (const RowInput::Index input : {RowInput::kLseGradient, RowInput::kEntropyGradient}) {
      if (!inputs_.Has(input)) continue;
      math_.Equal(bits, more_, term_);
      inputs_.Scaled(math_, more_, input, 1.0f);
      math_.Select(more_, bits, more_, 1.0f);
    }
    math_.Equal(bits, more_, term_);
    math_.Not(bits);
  }

  // Puts t, without the class's weight, into `spread`, u into `smooth`, and the share of both losses in r into `rest_`.
  __aicore__ inline void FromLoss(const Floats& max, const Floats& log_sum) {
    if (options_->rest) math_.Fill(rest_, 0.0f);
    if (!inputs_.Has(RowInput::kLossGradient)) {
      math_.Fill(spread, 0.0f);
    } else {
      inputs_.Scaled(math_, spread, RowInput::kLossGradient, inputs_.PerWeight());
      if (options_->smooth) {
        math_.Multiply(smooth, spread, problem_->label_smoothing / AsFloat(problem_->classes));
        math_.Select(smooth, targets_.Counted(), smooth, 0.0f);
        math_.Multiply(rest_, smooth, weight_total_);
        math_.Multiply(spread, spread, 1 - problem_->label_smoothing);
      }
    }
    if (options_->loss && problem_->z_loss != 0) {
      math_.Add(term_, max, log_sum);
      AddZLoss(RowInput::kLossGradient);
      AddZLoss(RowInput::kZLossGradient);
      math_.Select(rest_, targets_.Counted(), rest_, 0.0f);
    }
  }

  // Sets t: NaN where the target is no class, 0 in ignored rows.
  __aicore__ inline void SelectRows() {
    if (options_->loss) {
      math_.Select(spread, targets_.Valid(), spread, __builtin_nanf(""));
      math_.Select(spread, targets_.Counted(), spread, 0.0f);
    }
  }

  // Expects lse in `term_`.
  __aicore__ inline void AddZLoss(RowInput::Index gradient) {
    if (inputs_.Has(gradient)) {
      inputs_.Scaled(math_, more_, gradient, 2 * problem_->z_loss * inputs_.PerRow());
      math_.Multiply(more_, more_, term_);
      math_.Add(rest_, rest_, more_);
    }
  }

  // The gradients of the other outputs, which flow into ignored rows too: puts b into `slope`, and the rest of r.
  __aicore__ inline void FromOthers() {
    if (inputs_.Has(RowInput::kLseGradient)) {
      inputs_.Scaled(math_, term_, RowInput::kLseGradient, 1.0f);
      math_.Add(rest_, rest_, term_);
    }
    if (options_->entropy) {
      inputs_.Scaled(math_, slope, RowInput::kEntropyGradient, -1.0f);
      math_.Multiply(term_, slope, inputs_.Get(RowInput::kEntropy));
      math_.Add(rest_, rest_, term_);
    }
    if (inputs_.Has(RowInput::kLogProbSum)) {
      math_.Subtract(rest_, rest_, inputs_.Get(RowInput::kLogProbSum));
    } else if (options_->log_prob) {
      math_.Subtract(rest_, rest_, log_prob_sum);
    }
  }

  // Overwrites the logit, and makes `offset` complete.
  __aicore__ inline void LogProbOfTarget(const Floats& log_sum) {
    logits_->TransformBelowCap(logit, math_.Count());
    if (logits_->IsCapped()) {
      logits_->CappedSlope(target_slope_, logit, math_.Count());
      math_.Add(offset, offset, logits_->Softcap());
    }
    math_.Add(logit, logit, offset);
    math_.Subtract(logit, logit, log_sum);
  }

  // t * expm1(l) + p * (r + b * l) - u * w + grad_log_prob, times the slope. t * p - t would cancel as p -> 1.
  __aicore__ inline void GradientOfTarget() {
    math_.Expm1(at_target, logit, term_, more_);
    math_.Multiply(at_target, at_target, spread);
    if (options_->rest) {
      math_.Exp(term_, logit);
      if (options_->entropy) {
        math_.AtLeast(more_, logit, -kExponentOfZero);
        math_.Multiply(more_, more_, slope);
        math_.Add(more_, more_, rest_);
        math_.Multiply(term_, term_, more_);
      } else {
        math_.Multiply(term_, term_, rest_);
      }
      math_.Add(at_target, at_target, term_);
    }
    if (options_->weighted) {
      math_.Multiply(term_, smooth, class_weight);
      math_.Subtract(at_target, at_target, term_);
    } else if (options_->smooth) {
      math_.Subtract(at_target, at_target, smooth);
    }
    if (options_->log_prob) {
      math_.Add(at_target, at_target, class_log_prob);
    }
    if (logits_->SlopeScale() != 1) math_.Multiply(at_target, at_target, logits_->SlopeScale());
    if (logits_->IsCapped()) {
      math_.Multiply(at_target, at_target, target_slope_);
    }
  }

  // Assigns the vectors that this launch needs, in the order of RowVector. All begin as zeros, so that instructions
  // over whole vectors find numbers behind a group's last row.
  __aicore__ inline void TakeVectors(uint32_t count) {
    Floats* const vectors[RowVector::kVectors] = {
        &logit,  &class_weight, &class_log_prob, &log_prob_sum,  &offset, &spread, &slope,
        &smooth, &at_target,    &rest_,          &target_slope_, &term_,  &more_,
    };
    const Floats all = buffer_.Get<float>();
    Duplicate(all, 0.0f, count);
    VectorBarrier();
    uint32_t at = 0;
    for (uint32_t vector = 0; vector < RowVector::kVectors; ++vector) {
      if (HasRowVector(*problem_, *options_, vector)) {
        *vectors[vector] = all[at];
        at += length_;
      }
    }
  }

  const CeProblem* problem_;
  const BackwardOptions* options_;
  Logits* logits_;
  RowMath math_;
  Targets targets_;
  RowInputs inputs_;
  TBuf<QuePosition::VECCALC> buffer_;
  uint32_t length_;
  float weight_total_;
  Floats rest_;  // r
  Floats target_slope_;
  Floats term_;
  Floats more_;
};

}  // namespace npu_ce
