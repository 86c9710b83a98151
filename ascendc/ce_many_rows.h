// SPDX-License-Identifier: Apache-2.0
// A tile of many rows, and instructions that combine it with one number a row. A row is `blocks` blocks of eight
// floats; its number stands in a block of its own, eight times. Where a row has few blocks, a repeat takes one block of
// each of eight rows; where it has many, eight blocks of one row. Strides then reach all of a tile's rows with one
// instruction per block of a row, or per eight.
#pragma once

#include "ce_backward_rows.h"

namespace npu_ce {

constexpr uint32_t kMostFewBlocks = 31;  // eight rows of them are a repeat stride, of at most 255

class ManyRows {
 public:
  using Value = LocalTensor<float>;  // a number of each row
  using Floats = LocalTensor<float>;

  __aicore__ inline void Init(TPipe* pipe, const BackwardRows* rows, const CeBackwardPlan& plan) {
    pitch_ = plan.tile_columns;
    const uint8_t blocks = pitch_ / kBlockFloats;
    few_blocks_ = blocks <= kMostFewBlocks;
    if (few_blocks_) {
      steps_ = blocks;
      tile_ = {kBlockFloats, blocks, static_cast<uint8_t>(8 * blocks)};
      row_ = {0, 1, 8};
      column_ = {kBlockFloats, 0, 0};
    } else {
      steps_ = blocks / 8;
      tile_ = {kCeLanes, 1, blocks};
      row_ = {0, 0, 1};
      column_ = {kCeLanes, 1, 0};
    }
    offset = rows->offset;
    spread = rows->spread;
    slope = rows->slope;
    smooth = rows->smooth;
    pipe->InitBuffer(blocks_, plan.buffers.row_blocks);
    pipe->InitBuffer(column_index_, plan.buffers.column_index);
    pipe->InitBuffer(bits_, plan.buffers.bits);
    CreateVecIndex(column_index_.Get<float>(), 0.0f, pitch_);
    VectorBarrier();
  }

  // Of the tile at hand.
  __aicore__ inline void SetRows(uint32_t rows) {
    rows_ = CeilTo(rows, 8);
    repeats_ = few_blocks_ ? rows_ / 8 : rows_;
  }
  __aicore__ inline uint32_t Count() const { return rows_ * pitch_; }

  __aicore__ inline void Add(const Floats& to, const Floats& x, const Value& value) const {
    const Floats blocks = Spread(value);
    for (uint32_t i = 0; i < steps_; ++i) {
      AscendC::Add(Part(to, tile_, i), Part(x, tile_, i), blocks, kCeLanes, repeats_, Strides(tile_, tile_, row_));
    }
    VectorBarrier();
  }
  __aicore__ inline void Multiply(const Floats& to, const Floats& x, const Value& value) const {
    const Floats blocks = Spread(value);
    for (uint32_t i = 0; i < steps_; ++i) {
      Mul(Part(to, tile_, i), Part(x, tile_, i), blocks, kCeLanes, repeats_, Strides(tile_, tile_, row_));
    }
    VectorBarrier();
  }
  __aicore__ inline void Subtract(const Floats& from, const Value& value) const {
    const Floats blocks = Spread(value);
    for (uint32_t i = 0; i < steps_; ++i) {
      Sub(Part(from, tile_, i), Part(from, tile_, i), blocks, kCeLanes, repeats_, Strides(tile_, tile_, row_));
    }
    VectorBarrier();
  }
  __aicore__ inline void SubtractWeights(const Floats& from, const Floats& weights, const Value& factor,
                                         const Floats& scratch) const {
    const Floats blocks = Spread(factor);
    for (uint32_t i = 0; i < steps_; ++i) {
      Mul(Part(scratch, tile_, i), Part(weights, column_, i), blocks, kCeLanes, repeats_,
          Strides(tile_, column_, row_));
    }
    VectorBarrier();
    Sub(from, from, scratch, Count());
    VectorBarrier();
  }

  // to[column of the row] = value of the row, in every row.
  __aicore__ inline void SetColumn(const Floats& to, const Value& column, const Value& value) const {
    const LocalTensor<uint8_t> bits = bits_.Get<uint8_t>();
    const uint32_t bits_of_step = CeilTo(repeats_ * kCeLanes / 8, kBlockBytes);
    Floats blocks = Spread(column);
    for (uint32_t i = 0; i < steps_; ++i) {
      Compare(bits[i * bits_of_step], Part(column_index_.Get<float>(), column_, i), blocks, CMPMODE::EQ,
              uint64_t(kCeLanes), repeats_, Strides(kBits, column_, row_));
    }
    VectorBarrier();
    blocks = Spread(value);
    for (uint32_t i = 0; i < steps_; ++i) {
      const Floats part = Part(to, tile_, i);
      Select(part, bits[i * bits_of_step], blocks, part, SELMODE::VSEL_TENSOR_TENSOR_MODE, uint64_t(kCeLanes), repeats_,
             Strides(tile_, row_, tile_));
    }
    VectorBarrier();
  }

  // Zero where keep, 0 or -1 as an integer, is 0. Bit by bit, because 0 * NaN is not 0.
  __aicore__ inline void ZeroUnless(const Floats& tile, const LocalTensor<int32_t>& keep) const {
    const LocalTensor<uint16_t> blocks = Spread(keep.ReinterpretCast<float>()).ReinterpretCast<uint16_t>();
    for (uint32_t i = 0; i < steps_; ++i) {
      const LocalTensor<uint16_t> part = Part(tile, tile_, i).ReinterpretCast<uint16_t>();
      And(part, part, blocks, uint64_t(2 * kCeLanes), repeats_, Strides(tile_, tile_, row_));
    }
    VectorBarrier();
  }

  // sums[row] = the sum of the row. What is behind a row's end in the tile has to be 0.
  __aicore__ inline void Sums(const Floats& sums, const Floats& tile, const Floats& scratch) const {
    const Side& to = few_blocks_ ? row_ : tile_;
    Duplicate(scratch, 0.0f, Count());
    VectorBarrier();
    for (uint32_t i = 0; i < steps_; ++i) {
      AscendC::Add(scratch, scratch, Part(tile, tile_, i), kCeLanes, repeats_, Strides(to, to, tile_));
      VectorBarrier();
    }
    if (few_blocks_) {
      BlockReduceSum(sums, scratch, repeats_, kCeLanes, 1, 1, 8);
    } else {
      WholeReduceSum(sums, scratch, kCeLanes, repeats_, 1, 1, tile_.repeat);
    }
    VectorBarrier();
  }

  Value offset;
  Value spread;
  Value slope;
  Value smooth;

 private:
  // How instructions go through an operand: floats from one to the next, blocks within a repeat, blocks from repeat to
  // repeat.
  struct Side {
    uint32_t step;
    uint8_t block;
    uint8_t repeat;
  };

  // Of the bits of a comparison, which lie side by side whatever is said; a stride of 0 would be refused.
  static constexpr Side kBits = {0, 1, 8};

  __aicore__ static inline BinaryRepeatParams Strides(const Side& to, const Side& a, const Side& b) {
    return BinaryRepeatParams(to.block, a.block, b.block, to.repeat, a.repeat, b.repeat);
  }
  __aicore__ static inline Floats Part(const Floats& operand, const Side& side, uint32_t i) {
    return operand[i * side.step];
  }
  __aicore__ inline Floats Spread(const Value& value) const {
    const Floats blocks = blocks_.Get<float>();
    SpreadToBlocks(blocks, value, rows_);
    VectorBarrier();
    return blocks;
  }

  bool few_blocks_;
  uint32_t pitch_;
  uint32_t steps_;  // instructions that reach all blocks of a row
  uint32_t rows_;
  uint32_t repeats_;
  Side tile_;
  Side row_;
  Side column_;
  TBuf<QuePosition::VECCALC> blocks_, column_index_, bits_;
};

}  // namespace npu_ce
