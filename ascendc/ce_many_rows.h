// SPDX-License-Identifier: Apache-2.0
// A tile of many rows, and instructions that combine it with one number a row. A row is a few blocks of eight floats;
// its number stands in a block of its own, eight times. A repeat takes one block of each of eight rows, so that one
// instruction per block of a row reaches the whole tile, with all lanes at work.
#pragma once

#include "ce_backward_rows.h"

namespace npu_ce {

class ManyRows {
 public:
  using Value = LocalTensor<float>;  // a number of each row
  using Floats = LocalTensor<float>;

  __aicore__ inline void Init(TPipe* pipe, const BackwardRows* rows, const CeBackwardPlan& plan) {
    pitch_ = plan.tile_columns;
    blocks_of_row_ = pitch_ / kBlockFloats;
    tile_ = {kBlockFloats, blocks_of_row_, static_cast<uint8_t>(8 * blocks_of_row_)};
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
    repeats_ = rows_ / 8;
  }
  __aicore__ inline uint32_t Count() const { return rows_ * pitch_; }

  __aicore__ inline void Add(const Floats& to, const Floats& x, const Value& value) const {
    const Floats blocks = Spread(value);
    for (uint32_t i = 0; i < blocks_of_row_; ++i) {
      AscendC::Add(Part(to, tile_, i), Part(x, tile_, i), blocks, kCeLanes, repeats_, Strides(tile_, tile_, kRow));
    }
    VectorBarrier();
  }
  __aicore__ inline void Multiply(const Floats& to, const Floats& x, const Value& value) const {
    const Floats blocks = Spread(value);
    for (uint32_t i = 0; i < blocks_of_row_; ++i) {
      Mul(Part(to, tile_, i), Part(x, tile_, i), blocks, kCeLanes, repeats_, Strides(tile_, tile_, kRow));
    }
    VectorBarrier();
  }
  __aicore__ inline void Subtract(const Floats& from, const Value& value) const {
    const Floats blocks = Spread(value);
    for (uint32_t i = 0; i < blocks_of_row_; ++i) {
      Sub(Part(from, tile_, i), Part(from, tile_, i), blocks, kCeLanes, repeats_, Strides(tile_, tile_, kRow));
    }
    VectorBarrier();
  }
  __aicore__ inline void SubtractWeights(const Floats& from, const Floats& weights, const Value& factor,
                                         const Floats& scratch) const {
    const Floats blocks = Spread(factor);
    for (uint32_t i = 0; i < blocks_of_row_; ++i) {
      Mul(Part(scratch, tile_, i), Part(weights, kColumn, i), blocks, kCeLanes, repeats_,
          Strides(tile_, kColumn, kRow));
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
    for (uint32_t i = 0; i < blocks_of_row_; ++i) {
      Compare(bits[i * bits_of_step], Part(column_index_.Get<float>(), kColumn, i), blocks, CMPMODE::EQ,
              uint64_t(kCeLanes), repeats_, Strides(kRow, kColumn, kRow));
    }
    VectorBarrier();
    blocks = Spread(value);
    for (uint32_t i = 0; i < blocks_of_row_; ++i) {
      const Floats part = Part(to, tile_, i);
      Select(part, bits[i * bits_of_step], blocks, part, SELMODE::VSEL_TENSOR_TENSOR_MODE, uint64_t(kCeLanes), repeats_,
             Strides(tile_, kRow, tile_));
    }
    VectorBarrier();
  }

  // Zero where keep, 0 or -1 as an integer, is 0. Bit by bit, because 0 * NaN is not 0.
  __aicore__ inline void ZeroUnless(const Floats& tile, const LocalTensor<int32_t>& keep) const {
    const LocalTensor<uint16_t> blocks = Spread(keep.ReinterpretCast<float>()).ReinterpretCast<uint16_t>();
    for (uint32_t i = 0; i < blocks_of_row_; ++i) {
      const LocalTensor<uint16_t> part = Part(tile, tile_, i).ReinterpretCast<uint16_t>();
      And(part, part, blocks, uint64_t(2 * kCeLanes), repeats_, Strides(tile_, tile_, kRow));
    }
    VectorBarrier();
  }

  // sums[row] = the sum of the row. What is behind a row's end in the tile has to be 0.
  __aicore__ inline void Sums(const Floats& sums, const Floats& tile, const Floats& scratch) const {
    Duplicate(scratch, 0.0f, rows_ * kBlockFloats);
    VectorBarrier();
    for (uint32_t i = 0; i < blocks_of_row_; ++i) {
      AscendC::Add(scratch, scratch, Part(tile, tile_, i), kCeLanes, repeats_, Strides(kRow, kRow, tile_));
      VectorBarrier();
    }
    BlockReduceSum(sums, scratch, repeats_, kCeLanes, 1, 1, 8);
    VectorBarrier();
  }

  Value offset;
  Value spread;
  Value slope;
  Value smooth;

 private:
  // How an operand is gone through: floats from instruction to instruction, blocks within a repeat and from repeat to
  // repeat.
  struct Side {
    uint32_t step;
    uint8_t block;
    uint8_t repeat;
  };

  static constexpr Side kRow = {0, 1, 8};                // blocks of numbers, and bits, which know no strides
  static constexpr Side kColumn = {kBlockFloats, 0, 0};  // one row for all

  __aicore__ static inline BinaryRepeatParams Strides(Side to, Side a, Side b) {
    return BinaryRepeatParams(to.block, a.block, b.block, to.repeat, a.repeat, b.repeat);
  }
  __aicore__ static inline Floats Part(const Floats& operand, Side side, uint32_t i) { return operand[i * side.step]; }
  __aicore__ inline Floats Spread(const Value& value) const {
    const Floats blocks = blocks_.Get<float>();
    SpreadToBlocks(blocks, value, rows_);
    VectorBarrier();
    return blocks;
  }

  uint32_t pitch_;
  uint8_t blocks_of_row_;
  uint32_t rows_;  // a multiple of 8
  uint32_t repeats_;
  Side tile_;
  mutable TBuf<QuePosition::VECCALC> blocks_, column_index_, bits_;  // its Get is not const
};

}  // namespace npu_ce
