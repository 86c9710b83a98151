// SPDX-License-Identifier: Apache-2.0
// Sums over the classes, one for each span of a row: backward needs those of grad_log_prob and of the weights
// beforehand. A unit is one span of one row; units are numbered row by row, and each core takes a run of them.
#pragma once

#include "../common/lanes.h"

namespace npu_ce {

struct ClassSumsProblem {
  const void* from;  // [rows, columns], column stride 1
  uint64_t rows;
  uint64_t row_stride;
  uint32_t columns;
  uint32_t spans;
  uint32_t span_columns;
  float* to;  // [rows, spans]
};

template <class T>
class ClassSums {
 public:
  __aicore__ inline void Init(TPipe* pipe, const ClassSumsProblem& problem) {
    problem_ = &problem;
    from_ = InGm<T>(problem.from, (problem.rows - 1) * problem.row_stride + problem.columns);
    to_ = InGm<float>(problem.to, problem.rows * problem.spans);
    pipe->InitBuffer(in_, 2, kTile * sizeof(T));
    pipe->InitBuffer(sums_, 2, kSums * sizeof(float));
    pipe->InitBuffer(tile_, kTile * sizeof(float));
    pipe->InitBuffer(lanes_, kCeLanes * sizeof(float));
  }

  __aicore__ inline void Process() {
    const uint64_t units = problem_->rows * problem_->spans, core = GetBlockIdx(), cores = GetBlockNum();
    const uint64_t end = units * (core + 1) / cores;
    for (uint64_t unit = units * core / cores; unit < end; unit += kSums) {
      const uint32_t count = end - unit < kSums ? end - unit : kSums;
      LocalTensor<float> sums = sums_.AllocTensor<float>();
      for (uint32_t i = 0; i < count; ++i) {
        SumLanes(unit + i);
        WholeReduceSum(sums[i], lanes_.Get<float>(), kCeLanes, 1, 1, 1, 8);
      }
      sums_.EnQue(sums);
      sums = sums_.DeQue<float>();
      CopyOut(to_[unit], sums, count);
      sums_.FreeTensor(sums);
    }
  }

 private:
  static constexpr uint32_t kTile = 8192;
  static constexpr uint32_t kSums = 64;  // written by one DMA

  __aicore__ inline void SumLanes(uint64_t unit) {
    const uint64_t row = unit / problem_->spans * problem_->row_stride;
    const uint32_t begin = unit % problem_->spans * problem_->span_columns;
    const uint32_t end = Least(problem_->columns, begin + problem_->span_columns);
    const LocalTensor<float> lanes = lanes_.Get<float>(), tile = tile_.Get<float>();
    Duplicate(lanes, 0.0f, kCeLanes);
    for (uint32_t column = begin; column < end; column += kTile) {
      const uint32_t count = Least(end - column, kTile);
      LocalTensor<T> in = in_.template AllocTensor<T>();
      CopyIn(in, from_[row + column], count);
      in_.EnQue(in);
      in = in_.template DeQue<T>();
      ToFloats(tile, in, count);
      in_.FreeTensor(in);
      VectorBarrier();
      FillTail(tile, count, 0.0f);
      Fold<SumOf>(tile, Repeats(count));
      Add(lanes, lanes, tile, kCeLanes);
      VectorBarrier();
    }
  }

  const ClassSumsProblem* problem_;
  GlobalTensor<T> from_;
  GlobalTensor<float> to_;
  TQue<QuePosition::VECIN, 1> in_;
  TQue<QuePosition::VECOUT, 1> sums_;
  TBuf<QuePosition::VECCALC> tile_, lanes_;
};

}  // namespace npu_ce
