// SPDX-License-Identifier: Apache-2.0
// weight[target] of the rows of a group. Where there are few weights, all stay in UB, and Gather looks them up. Else
// each row's is fetched by a DMA of one element, since a scalar read of GM would stall the unit that starts all others.
#pragma once

#include "../common/target.h"
#include "../ub/forward.h"

namespace npu_ce {

class TargetWeights {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, uint32_t capacity) {
    present_ = problem.weight != nullptr;
    if (!present_) {
      return;
    }
    weights_ = InGm<float>(problem.weight, problem.classes);
    resident_ = problem.classes <= kCeNarrowClasses;
    const TargetWeightBytes bytes(problem.classes, capacity);
    pipe->InitBuffer(table_, 1, bytes.table);
    pipe->InitBuffer(offsets_, bytes.offsets);
    pipe->InitBuffer(result_, bytes.result);
    Duplicate(result_.Get<float>(), 0.0f, capacity);
    if (resident_) {
      LocalTensor<float> all = table_.AllocTensor<float>();
      CopyIn(all, weights_, problem.classes);
      table_.EnQue(all);
      looked_up_ = table_.DeQue<float>();
      FillTail(looked_up_, problem.classes, 0.0f);
    } else {
      CountBytes(offsets_.Get<int32_t>(), kBlockBytes, capacity);
    }
  }

  __aicore__ inline bool Present() const { return present_; }
  // All weights where they stay in UB, padded with 0 to whole repeats.
  __aicore__ inline LocalTensor<float> All() const { return looked_up_; }
  // Whether Fetch reads the classes by the scalar unit, which then has to wait for them.
  __aicore__ inline bool NeedsScalars() const { return present_ && !resident_; }

  // Begins to fetch the weights of `rows` rows.
  __aicore__ inline void Fetch(const LocalTensor<int32_t>& classes, uint32_t rows) {
    if (!NeedsScalars()) {
      return;
    }
    looked_up_ = table_.AllocTensor<float>();
    for (uint32_t row = 0; row < rows; ++row) {
      CopyIn(looked_up_[row * kBlockFloats], weights_[classes.GetValue(row)], 1);
    }
    table_.EnQue(looked_up_);
  }

  __aicore__ inline LocalTensor<float> Vector(const LocalTensor<int32_t>& classes, uint32_t rows) {
    const LocalTensor<int32_t> offsets = offsets_.Get<int32_t>();
    if (resident_) {
      ShiftLeft(offsets, classes, int32_t(2), rows);
      VectorBarrier();
    } else {
      looked_up_ = table_.DeQue<float>();
    }
    Gather(result_.Get<float>(), looked_up_, offsets.ReinterpretCast<uint32_t>(), 0, rows);
    VectorBarrier();
    if (!resident_) {
      table_.FreeTensor(looked_up_);
    }
    return result_.Get<float>();
  }

  // At the end of the kernel.
  __aicore__ inline void Close() {
    if (present_ && resident_) {
      table_.FreeTensor(looked_up_);
    }
  }

 private:
  bool present_ = false, resident_ = false;
  GlobalTensor<float> weights_;
  LocalTensor<float> looked_up_;
  TQue<QuePosition::VECIN, 1> table_;
  TBuf<QuePosition::VECCALC> offsets_, result_;
};

}  // namespace npu_ce
