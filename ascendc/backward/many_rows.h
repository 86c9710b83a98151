// SPDX-License-Identifier: Apache-2.0
// A tile of many rows, and instructions that combine it with one number a row, which stands in a block of its own eight
// times. A row is cut into chunks, and one instruction works on the same chunk of all rows: on eight floats of eight
// rows a repeat where the strides' fields hold that (rows up to 248), else on 64 floats of one row.
#pragma once

#include "rows.h"

namespace npu_ce {

class ManyRows {
 public:
  using Value = LocalTensor<float>;  // a number of each row
  using Floats = LocalTensor<float>;

  __aicore__ inline void Init(TPipe* pipe, const BackwardRows* rows, const CeBackwardPlan& plan) {
    pitch_ = plan.tile_columns;
    by_blocks_ = pitch_ <= kCeBlockPitch;
    chunk_ = by_blocks_ ? kBlockFloats : kCeLanes;
    const uint8_t blocks_of_row = pitch_ / kBlockFloats;
    tile_ = by_blocks_ ? Strides{blocks_of_row, static_cast<uint8_t>(8 * blocks_of_row)} : Strides{1, blocks_of_row};
    value_ = by_blocks_ ? Strides{1, 8} : Strides{0, 1};
    columns_ = by_blocks_ ? Strides{0, 0} : Strides{1, 0};
    offset = rows->offset;
    spread = rows->spread;
    slope = rows->slope;
    smooth = rows->smooth;
    if (plan.buffers.row_blocks > 0) pipe->InitBuffer(blocks_, plan.buffers.row_blocks);
    pipe->InitBuffer(column_index_, plan.buffers.column_index);
    pipe->InitBuffer(bits_, plan.buffers.bits);
    CountUp(column_index_.Get<float>(), CeilTo(pitch_, kCeLanes));  // Compare takes whole repeats
  }

  __aicore__ inline void SetRows(uint32_t rows) {
    rows_ = by_blocks_ ? CeilTo(rows, kBlockFloats) : rows;
    repeats_ = by_blocks_ ? rows_ / kBlockFloats : rows;
  }
  __aicore__ inline uint32_t Count() const { return rows_ * pitch_; }

  // Where the gradient of the tile at hand will be written. In a half dtype that is its last step, and until then the
  // place holds the rows' blocks.
  template <class T>
  __aicore__ inline void SetOut(const LocalTensor<T>& out) {
    out_ = out.template ReinterpretCast<float>();
    spread_ = kIsFloat<T> ? blocks_.Get<float>() : out_;
  }

  __aicore__ inline void Add(const Floats& to, const Floats& x, const Value& value) const {
    Spread(value);
    for (uint32_t at = 0; at < pitch_; at += chunk_) {
      AscendC::Add(to[at], x[at], spread_, Lanes(at), repeats_, Params(tile_, tile_, value_));
    }
    VectorBarrier();
  }
  __aicore__ inline void Multiply(const Floats& to, const Floats& x, const Value& value) const {
    Spread(value);
    for (uint32_t at = 0; at < pitch_; at += chunk_) {
      Mul(to[at], x[at], spread_, Lanes(at), repeats_, Params(tile_, tile_, value_));
    }
    VectorBarrier();
  }
  __aicore__ inline void Subtract(const Floats& from, const Value& value) const {
    Spread(value);
    for (uint32_t at = 0; at < pitch_; at += chunk_) {
      Sub(from[at], from[at], spread_, Lanes(at), repeats_, Params(tile_, tile_, value_));
    }
    VectorBarrier();
  }
  __aicore__ inline void SubtractWeights(const Floats& from, const Floats& weights, const Value& factor,
                                         const Floats& scratch) const {
    Spread(factor);
    for (uint32_t at = 0; at < pitch_; at += chunk_) {
      Mul(scratch[at], weights[at], spread_, Lanes(at), repeats_, Params(tile_, columns_, value_));
    }
    VectorBarrier();
    Sub(from, from, scratch, Count());
    VectorBarrier();
  }

  // to[column of the row] = value of the row, in every row.
  __aicore__ inline void SetColumn(const Floats& to, const Value& column, const Value& value) const {
    const LocalTensor<uint8_t> bits = bits_.Get<uint8_t>();
    const Floats index = column_index_.Get<float>();
    const uint32_t bits_of_chunk = CeilTo(repeats_ * kCeLanes / 8, kBlockBytes);
    Spread(column);
    for (uint32_t at = 0; at < pitch_; at += chunk_) {
      Compare(bits[at / chunk_ * bits_of_chunk], index[at], spread_, CMPMODE::EQ, uint64_t(kCeLanes), repeats_,
              Params(SideBySide(), columns_, value_));
    }
    Spread(value);
    for (uint32_t at = 0; at < pitch_; at += chunk_) {
      Select(to[at], bits[at / chunk_ * bits_of_chunk], spread_, to[at], SELMODE::VSEL_TENSOR_TENSOR_MODE, Lanes(at),
             repeats_, Params(tile_, value_, tile_));
    }
    VectorBarrier();
  }

  // Zero where keep, 0 or -1 as an integer, is 0. Bit by bit, because 0 * NaN is not 0.
  __aicore__ inline void ZeroUnless(const Floats& tile, const LocalTensor<int32_t>& keep) const {
    Spread(keep.ReinterpretCast<float>());
    const LocalTensor<uint16_t> blocks = spread_.ReinterpretCast<uint16_t>();
    for (uint32_t at = 0; at < pitch_; at += chunk_) {
      const LocalTensor<uint16_t> part = tile[at].ReinterpretCast<uint16_t>();
      And(part, part, blocks, 2 * Lanes(at), repeats_, Params(tile_, tile_, value_));
    }
    VectorBarrier();
  }

  // sums[row] = the sum of the row. What is behind a row's end in the tile has to be 0. Waits for the tile itself.
  __aicore__ inline void Sums(const Floats& sums, const Floats& tile) const {
    Duplicate(out_, 0.0f, repeats_ * kCeLanes);
    VectorBarrier();
    for (uint32_t at = 0; at < pitch_; at += chunk_) {
      AscendC::Add(out_, out_, tile[at], Lanes(at), repeats_, Params(SideBySide(), SideBySide(), tile_));
      VectorBarrier();
    }
    if (by_blocks_) {
      BlockReduceSum(sums, out_, repeats_, kCeLanes, 1, 1, 8);
    } else {
      WholeReduceSum(sums, out_, kCeLanes, repeats_, 1, 1, 8);
    }
    VectorBarrier();
  }

  Value offset;
  Value spread;
  Value slope;
  Value smooth;

 private:
  // In blocks: within a repeat, and from repeat to repeat.
  struct Strides {
    uint8_t block;
    uint8_t repeat;
  };

  // Of a chunk of every row, and of their bits, which lie so whatever is said. No constant: a copy of one takes its
  // address, which device code may have no memory for.
  __aicore__ static inline Strides SideBySide() { return {1, 8}; }

  __aicore__ static inline BinaryRepeatParams Params(Strides to, Strides a, Strides b) {
    return BinaryRepeatParams(to.block, a.block, b.block, to.repeat, a.repeat, b.repeat);
  }
  // Of the chunk that begins `at` floats into the rows: the last one of a row may be short.
  __aicore__ inline uint64_t Lanes(uint32_t at) const { return by_blocks_ ? kCeLanes : Least(kCeLanes, pitch_ - at); }
  __aicore__ inline void Spread(const Value& value) const {
    SpreadToBlocks(spread_, value, rows_);
    VectorBarrier();
  }

  uint32_t pitch_;
  uint32_t chunk_;
  bool by_blocks_;
  Strides tile_;
  Strides value_;    // a row's number, in a block of its own
  Strides columns_;  // a number a column, the same in all rows
  uint32_t rows_;
  uint32_t repeats_;
  Floats out_;
  Floats spread_;
  mutable TBuf<QuePosition::VECCALC> blocks_, column_index_, bits_;  // its Get is not const
};

}  // namespace npu_ce
