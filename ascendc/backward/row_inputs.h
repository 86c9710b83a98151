// SPDX-License-Identifier: Apache-2.0
// What backward reads per row beside the target: row_stats and gradients, a group of rows at a time through one queue.
#pragma once

#include "../ub/backward.h"
#include "row_math.h"

namespace npu_ce {

class RowInputs {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, const CeGradients& gradients,
                              const CeBackwardPlan& plan) {
    length_ = plan.row_vector;
    rows_ = problem.rows;
    row_stats_ = InGm<float>(gradients.row_stats, 2 * rows_);
    vectors_[RowInput::kMax] = Floats(gradients.row_stats);
    vectors_[RowInput::kLogSum] = Floats(gradients.row_stats + problem.rows);
    vectors_[RowInput::kLossGradient] = gradients.loss;
    vectors_[RowInput::kZLossGradient] = gradients.z_loss;
    vectors_[RowInput::kLseGradient] = gradients.lse;
    vectors_[RowInput::kEntropyGradient] = gradients.entropy;
    vectors_[RowInput::kEntropy] = Floats(gradients.entropy.data != nullptr ? gradients.entropy_value : nullptr);
    const bool sums = plan.log_prob_sums.spans > 0;
    vectors_[RowInput::kLogProbSum] = Floats(sums ? gradients.workspace + plan.log_prob_sums.sums : nullptr);
    uint32_t at = 0;
    for (uint32_t input = 0; input < RowInput::kInputs; ++input) {
      is_vector_[input] = HasRowInput(gradients, sums, input);
      at_[input] = at;
      at += IsVector(input) ? length_ * sizeof(float) : 0;
    }
    pipe->InitBuffer(queue_, plan.row_buffers, plan.buffers.row_inputs);
    pipe->InitBuffer(singles_, kSingleBytes);
    FillOnce(plan);
    is_mean_ = (gradients.loss.data != nullptr || gradients.z_loss.data != nullptr) && problem.reduction == kCeMean;
    denominators_ = InGm<float>(gradients.denominators, 2);
    FetchSingles();
  }

  __aicore__ inline bool Has(uint32_t input) const { return vectors_[input].data != nullptr; }

  __aicore__ inline void Load(uint64_t row, uint32_t rows) {
    const LocalTensor<uint8_t> to = queue_.AllocTensor<uint8_t>();
    // Both vectors of row_stats in one DMA.
    CopyRowsIn(to.ReinterpretCast<float>(), row_stats_[row], 2, rows, rows_, length_);
    for (uint32_t input = RowInput::kLogSum + 1; input < RowInput::kInputs; ++input) {
      if (IsVector(input)) {
        CopyVector(to[at_[input]], vectors_[input], row, rows);
      }
    }
    queue_.EnQue(to);
  }
  __aicore__ inline void Begin() {
    inputs_ = queue_.DeQue<uint8_t>();
    if (!has_singles_) {
      TakeSingles();
    }
  }
  __aicore__ inline void End() { queue_.FreeTensor(inputs_); }

  // 1 / denominators[0] and 1 / denominators[1] for a mean, else 1.
  __aicore__ inline float PerWeight() const { return per_weight_; }
  __aicore__ inline float PerRow() const { return per_row_; }

  // An input that is always a float32 vector, as it lies in the queue.
  __aicore__ inline LocalTensor<float> Get(RowInput::Index input) const {
    return inputs_[at_[input]].ReinterpretCast<float>();
  }

  // to = factor * the input, whatever its dtype and stride.
  __aicore__ inline void Scaled(const RowMath& math, const LocalTensor<float>& to, RowInput::Index input,
                                float factor) const {
    if (!IsVector(input)) {
      math.Fill(to, factor * single_[input]);
      return;
    }
    ToFloatVector(to, inputs_[at_[input]], vectors_[input].dtype, math.Count());
    math.Multiply(to, to, factor);
  }

 private:
  __aicore__ static inline CeRowVector Floats(const float* data) { return {(void*)data, kCeFloat32, 1}; }
  __aicore__ inline bool IsVector(uint32_t input) const { return is_vector_[input]; }

  __aicore__ inline void CopyVector(const LocalTensor<uint8_t>& to, const CeRowVector& from, uint64_t row,
                                    uint32_t rows) const {
    if (from.dtype == kCeFloat32) {
      CopyIn(to.ReinterpretCast<float>(), InGm<float>(from.data, rows_)[row], rows);
    } else {
      CopyIn(to.ReinterpretCast<half>(), InGm<half>(from.data, rows_)[row], rows);  // or bfloat16: 2 bytes
    }
  }

  __aicore__ static inline void ToFloatVector(const LocalTensor<float>& to, const LocalTensor<uint8_t>& from,
                                              int32_t dtype, uint32_t count) {
    if (dtype == kCeFloat32) {
      ToFloats(to, from.ReinterpretCast<float>(), count);
    } else if (dtype == kCeFloat16) {
      ToFloats(to, from.ReinterpretCast<half>(), count);
    } else {
      ToFloats(to, from.ReinterpretCast<bfloat16_t>(), count);
    }
    VectorBarrier();
  }

  // Instructions run over whole vectors, so what lies behind a group's last row has to be numbers, whatever they are.
  __aicore__ inline void FillOnce(const CeBackwardPlan& plan) {
    LocalTensor<float> raw[2];
    for (uint32_t i = 0; i < plan.row_buffers; ++i) {
      raw[i] = queue_.AllocTensor<float>();
      Duplicate(raw[i], 0.0f, plan.buffers.row_inputs / sizeof(float));
    }
    for (uint32_t i = 0; i < plan.row_buffers; ++i) {
      queue_.FreeTensor(raw[i]);
    }
  }

  // A vector of stride 0 is one number for the whole launch. It is copied to a block of its own, and cast to float32 in
  // another. These copies are issued first, and waited for only when those of the first group are issued too and the
  // scalar unit has read the denominators: in a launch of few rows, each wait for memory is a tenth of the time.
  __aicore__ inline bool IsSingle(uint32_t input) const { return Has(input) && vectors_[input].stride == 0; }
  __aicore__ inline LocalTensor<uint8_t> Single(uint32_t input) { return singles_.Get<uint8_t>()[input * kBlockBytes]; }
  __aicore__ inline LocalTensor<float> FloatSingle(uint32_t input) {
    return Single(RowInput::kInputs + input).ReinterpretCast<float>();
  }

  __aicore__ inline void FetchSingles() {
    for (uint32_t input = 0; input < RowInput::kInputs; ++input) {
      if (IsSingle(input)) {
        CopyVector(Single(input), vectors_[input], 0, 1);
      }
    }
  }

  __aicore__ inline void TakeSingles() {
    has_singles_ = true;
    if (is_mean_) {
      per_weight_ = 1 / denominators_.GetValue(0);
      per_row_ = 1 / denominators_.GetValue(1);
    }
    Order<HardEvent::MTE2_V>();
    for (uint32_t input = 0; input < RowInput::kInputs; ++input) {
      if (IsSingle(input)) {
        ToFloatVector(FloatSingle(input), Single(input), vectors_[input].dtype, 1);
      }
    }
    Order<HardEvent::V_S>();
    for (uint32_t input = 0; input < RowInput::kInputs; ++input) {
      if (IsSingle(input)) {
        single_[input] = FloatSingle(input).GetValue(0);
      }
    }
  }

  GlobalTensor<float> row_stats_, denominators_;
  TQue<QuePosition::VECIN, 1> queue_;
  LocalTensor<uint8_t> inputs_;
  CeRowVector vectors_[RowInput::kInputs];
  bool is_vector_[RowInput::kInputs];
  uint32_t at_[RowInput::kInputs];
  TBuf<QuePosition::VECIN> singles_;
  bool is_mean_, has_singles_ = false;
  float single_[RowInput::kInputs];
  float per_weight_ = 1, per_row_ = 1;
  uint32_t length_;
  uint64_t rows_;
};

}  // namespace npu_ce
