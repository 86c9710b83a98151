// SPDX-License-Identifier: Apache-2.0
// A tile of many short rows, `pitch` floats apart. A row is cut into chunks, and one instruction works on the same
// chunk of all rows: on eight floats of eight rows a repeat where the strides' fields hold that (rows up to 248), else
// on 64 floats of one row. Rows then meet in one chunk each, and reductions of blocks or repeats finish them.
#pragma once

#include "../common/lanes.h"

namespace npu_ce {

static_assert(kCeNarrowClasses / kBlockFloats <= 255, "a stride from row to row has 8 bits, and counts blocks");

class RowTile {
 public:
  // Rows in multiples of 8, at most kMaxRepeats * 8 of the first kind and kMaxRepeats of the second.
  __aicore__ inline void Init(TPipe* pipe, uint32_t columns, uint32_t pitch, uint32_t capacity) {
    columns_ = columns;
    pitch_ = pitch;
    by_blocks_ = pitch <= kCeBlockPitch;
    chunk_ = by_blocks_ ? kBlockFloats : kCeLanes;
    pipe->InitBuffer(scratch_, capacity * chunk_ * sizeof(float));
  }

  // The rows that instructions work on from now on.
  __aicore__ inline void SetRows(uint32_t rows) {
    rows_ = by_blocks_ ? CeilTo(rows, kBlockFloats) : rows;
    repeats_ = by_blocks_ ? rows_ / kBlockFloats : rows_;
  }
  __aicore__ inline uint32_t Rows() const { return rows_; }  // in whole instructions
  __aicore__ inline uint32_t Count() const { return rows_ * pitch_; }

  // What lies behind the columns of each row.
  __aicore__ inline void FillTails(const LocalTensor<float>& tile, float value) const {
    uint32_t column = columns_ / chunk_ * chunk_;
    if (column < columns_) {
      uint64_t mask[2] = {~uint64_t(0) << (columns_ - column), 0};
      if (by_blocks_) {  // the same lanes of each block
        mask[0] = (0xff << (columns_ - column) & 0xff) * 0x0101010101010101;
      }
      Duplicate(tile[column], value, mask, repeats_, BlockStep(), RepeatStep());
      column += chunk_;
    }
    for (; column < pitch_; column += chunk_) {
      Duplicate(tile[column], value, uint64_t(kCeLanes), repeats_, BlockStep(), RepeatStep());
    }
    VectorBarrier();
  }

  __aicore__ inline void Max(const LocalTensor<float>& result, const LocalTensor<float>& tile) const {
    const LocalTensor<float> folded = FoldChunks<MaxOf>(tile);
    if (by_blocks_) {
      BlockReduceMax(result, folded, repeats_, kCeLanes, 1, 1, 8);
    } else {
      WholeReduceMax(result, folded, kCeLanes, repeats_, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
    }
    VectorBarrier();
  }

  __aicore__ inline void Min(const LocalTensor<float>& result, const LocalTensor<float>& tile) const {
    const LocalTensor<float> folded = FoldChunks<MinOf>(tile);
    if (by_blocks_) {
      BlockReduceMin(result, folded, repeats_, kCeLanes, 1, 1, 8);
    } else {
      WholeReduceMin(result, folded, kCeLanes, repeats_, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
    }
    VectorBarrier();
  }

  __aicore__ inline void Sum(const LocalTensor<float>& result, const LocalTensor<float>& tile) const {
    const LocalTensor<float> folded = FoldChunks<SumOf>(tile);
    if (by_blocks_) {
      BlockReduceSum(result, folded, repeats_, kCeLanes, 1, 1, 8);
    } else {
      WholeReduceSum(result, folded, kCeLanes, repeats_, 1, 1, 8);
    }
    VectorBarrier();
  }

  // dst = src - values, a value a row. Rows that are no more than their chunks are taken one by one: the
  // repeats of an instruction then go through all banks, and it reads its value once.
  __aicore__ inline void Subtract(const LocalTensor<float>& dst, const LocalTensor<float>& src,
                                  const LocalTensor<float>& values) const {
    const LocalTensor<float> spread = Spread(values);
    if (FewerThanChunks()) {
      for (uint32_t row = 0; row < rows_; ++row) {
        Sub(dst[row * pitch_], src[row * pitch_], spread[row * kBlockFloats], kCeLanes, pitch_ / kCeLanes,
            BinaryRepeatParams(1, 1, 0, kRepeatBlocks, kRepeatBlocks, 0));
      }
      VectorBarrier();
      return;
    }
    for (uint32_t column = 0; column < pitch_; column += chunk_) {
      Sub(dst[column], src[column], spread, kCeLanes, repeats_,
          BinaryRepeatParams(BlockStep(), BlockStep(), ValueBlockStep(), RepeatStep(), RepeatStep(),
                             ValueRepeatStep()));
    }
    VectorBarrier();
  }

  // dst = src * columns, a factor a column.
  __aicore__ inline void MultiplyColumns(const LocalTensor<float>& dst, const LocalTensor<float>& src,
                                         const LocalTensor<float>& columns) const {
    for (uint32_t column = 0; column < pitch_; column += chunk_) {
      Mul(dst[column], src[column], columns[column], kCeLanes, repeats_,
          BinaryRepeatParams(BlockStep(), BlockStep(), by_blocks_ ? 0 : 1, RepeatStep(), RepeatStep(), 0));
    }
    VectorBarrier();
  }

  // dst = source where tile equals the row's value, `otherwise` elsewhere. `source` has one number a column, or with
  // `each` one for each element; `bits` have one for each element of a chunk.
  __aicore__ inline void SelectEqual(const LocalTensor<float>& dst, const LocalTensor<float>& tile,
                                     const LocalTensor<float>& values, const LocalTensor<float>& source, bool each,
                                     float otherwise, const LocalTensor<uint8_t>& bits) const {
    const LocalTensor<float> spread = Spread(values);
    for (uint32_t column = 0; column < pitch_; column += chunk_) {
      Compare(bits, tile[column], spread, CMPMODE::EQ, uint64_t(kCeLanes), repeats_,
              BinaryRepeatParams(1, BlockStep(), ValueBlockStep(), 8, RepeatStep(), ValueRepeatStep()));
      SelectChunk(dst[column], source[column], each, otherwise, bits);
    }
  }

  // The same, where the element is a NaN.
  __aicore__ inline void SelectNan(const LocalTensor<float>& dst, const LocalTensor<float>& tile,
                                   const LocalTensor<float>& source, float otherwise,
                                   const LocalTensor<uint8_t>& bits) const {
    for (uint32_t column = 0; column < pitch_; column += chunk_) {
      Compare(bits, tile[column], tile[column], CMPMODE::NE, uint64_t(kCeLanes), repeats_,
              BinaryRepeatParams(1, BlockStep(), BlockStep(), 8, RepeatStep(), RepeatStep()));
      SelectChunk(dst[column], source[column], false, otherwise, bits);
    }
  }

 private:
  // Instructions then go row by row rather than chunk by chunk.
  __aicore__ inline bool FewerThanChunks() const { return !by_blocks_ && rows_ <= pitch_ / chunk_; }
  __aicore__ inline uint8_t BlockStep() const { return by_blocks_ ? pitch_ / kBlockFloats : 1; }
  __aicore__ inline uint8_t RepeatStep() const { return by_blocks_ ? pitch_ : pitch_ / kBlockFloats; }
  // Of values spread over blocks, one a row.
  __aicore__ inline uint8_t ValueBlockStep() const { return by_blocks_ ? 1 : 0; }
  __aicore__ inline uint8_t ValueRepeatStep() const { return by_blocks_ ? 8 : 1; }

  __aicore__ inline LocalTensor<float> Spread(const LocalTensor<float>& values) const {
    const LocalTensor<float> spread = scratch_.Get<float>();
    SpreadToBlocks(spread, values, rows_);
    VectorBarrier();
    return spread;
  }

  // The chunks of each row in one, side by side.
  template <class Op>
  __aicore__ inline LocalTensor<float> FoldChunks(const LocalTensor<float>& tile) const {
    if (pitch_ == chunk_) {
      return tile;
    }
    const LocalTensor<float> folded = scratch_.Get<float>();
    Op::Apply(folded, tile, tile[chunk_], uint64_t(kCeLanes), repeats_,
              BinaryRepeatParams(1, BlockStep(), BlockStep(), 8, RepeatStep(), RepeatStep()));
    VectorBarrier();
    if (FewerThanChunks()) {  // in the same order
      for (uint32_t row = 0; row < rows_ && pitch_ > 2 * chunk_; ++row) {
        const LocalTensor<float> of_row = folded[row * kCeLanes];
        Op::Apply(of_row, tile[row * pitch_ + 2 * kCeLanes], of_row, uint64_t(kCeLanes), pitch_ / kCeLanes - 2,
                  BinaryRepeatParams(1, 1, 1, 0, kRepeatBlocks, 0));
      }
      VectorBarrier();
      return folded;
    }
    for (uint32_t column = 2 * chunk_; column < pitch_; column += chunk_) {
      Op::Apply(folded, folded, tile[column], uint64_t(kCeLanes), repeats_,
                BinaryRepeatParams(1, 1, BlockStep(), 8, 8, RepeatStep()));
      VectorBarrier();
    }
    return folded;
  }

  __aicore__ inline void SelectChunk(const LocalTensor<float>& dst, const LocalTensor<float>& source, bool each,
                                     float otherwise, const LocalTensor<uint8_t>& bits) const {
    const uint8_t block = each ? BlockStep() : by_blocks_ ? 0 : 1, repeat = each ? RepeatStep() : 0;
    VectorBarrier();
    Select(dst, bits, source, otherwise, SELMODE::VSEL_TENSOR_SCALAR_MODE, uint64_t(kCeLanes), repeats_,
           BinaryRepeatParams(BlockStep(), block, block, RepeatStep(), repeat, repeat));
    VectorBarrier();
  }

  uint32_t columns_, pitch_, chunk_, rows_, repeats_;
  bool by_blocks_;
  // For rows folded to a chunk each, or for values spread to blocks. Its Get is not const.
  mutable TBuf<QuePosition::VECCALC> scratch_;
};

}  // namespace npu_ce
