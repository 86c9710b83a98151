// SPDX-License-Identifier: Apache-2.0
// What forward does with a tile of many short rows, chunk by chunk. A reduction folds each row into one chunk, and
// finishes that by an instruction that reduces blocks or repeats.
#pragma once

#include "../common/row_chunks.h"
#include "../ub/forward.h"

namespace npu_ce {

static_assert(kCeNarrowClasses / kBlockFloats <= 255, "a stride from row to row has 8 bits, and counts blocks");

class RowTile : public RowChunks {
 public:
  __aicore__ inline void Init(TPipe* pipe, uint32_t columns, uint32_t pitch, uint32_t capacity) {
    RowChunks::Init(pitch);
    columns_ = columns;
    pipe->InitBuffer(scratch_, RowTileBytes(pitch, capacity));
  }

  // Zeros what a copy of `rows` rows does not write and instructions read: the rows up to a whole instruction, or what
  // is behind each row's last 32 bytes.
  template <class T>
  __aicore__ inline void FillBehind(const LocalTensor<T>& tile, uint32_t rows) const {
    constexpr uint32_t words_of_block = kBlockBytes / sizeof(uint16_t), words_of_element = sizeof(T) / sizeof(uint16_t);
    const LocalTensor<uint16_t> words = tile.template ReinterpretCast<uint16_t>();
    const uint32_t pitch = Pitch() * words_of_element;
    if (ByBlocks()) {
      const uint32_t whole = rows / kBlockFloats * kBlockFloats;
      if (whole < rows) {
        Duplicate(words[whole * pitch], uint16_t(0), kBlockFloats * pitch);
      }
      return;
    }
    const uint32_t copied = CeilTo(columns_ * words_of_element, words_of_block);
    if (copied < pitch) {
      Duplicate(words[copied], uint16_t(0), uint64_t(pitch - copied), rows, 1, pitch / words_of_block);
    }
  }

  // Sets what lies behind the columns of each row.
  __aicore__ inline void FillTails(const LocalTensor<float>& tile, float value) const {
    uint32_t column = columns_ / Chunk() * Chunk();
    if (column < columns_) {
      uint64_t mask[2] = {~uint64_t(0) << (columns_ - column), 0};
      if (ByBlocks()) {  // the same lanes of each block
        mask[0] = (0xff << (columns_ - column) & 0xff) * 0x0101010101010101;
      }
      Duplicate(tile[column], value, mask, Repeats(), Tile().block, Tile().repeat);
      column += Chunk();
    }
    for (; column < Pitch(); column += Chunk()) {
      Duplicate(tile[column], value, uint64_t(kCeLanes), Repeats(), Tile().block, Tile().repeat);
    }
    VectorBarrier();
  }

  __aicore__ inline void Max(const LocalTensor<float>& result, const LocalTensor<float>& tile) const {
    const LocalTensor<float> folded = FoldChunks<MaxOf>(tile);
    if (ByBlocks()) {
      BlockReduceMax(result, folded, Repeats(), kCeLanes, 1, 1, 8);
    } else {
      WholeReduceMax(result, folded, kCeLanes, Repeats(), 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
    }
    VectorBarrier();
  }

  __aicore__ inline void Min(const LocalTensor<float>& result, const LocalTensor<float>& tile) const {
    const LocalTensor<float> folded = FoldChunks<MinOf>(tile);
    if (ByBlocks()) {
      BlockReduceMin(result, folded, Repeats(), kCeLanes, 1, 1, 8);
    } else {
      WholeReduceMin(result, folded, kCeLanes, Repeats(), 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
    }
    VectorBarrier();
  }

  __aicore__ inline void Sum(const LocalTensor<float>& result, const LocalTensor<float>& tile) const {
    SumChunks(result, FoldChunks<SumOf>(tile));
  }

  // dst = src - values, one value per row. If there are no more rows than chunks in a row, each row takes an
  // instruction of its own: its repeats then go through all banks, and it reads its value once.
  __aicore__ inline void Subtract(const LocalTensor<float>& dst, const LocalTensor<float>& src,
                                  const LocalTensor<float>& values) const {
    const LocalTensor<float> spread = Spread(values);
    if (FewerThanChunks()) {
      for (uint32_t row = 0; row < Rows(); ++row) {
        Sub(dst[row * Pitch()], src[row * Pitch()], spread[row * kBlockFloats], kCeLanes, Pitch() / kCeLanes,
            BinaryRepeatParams(1, 1, 0, kRepeatBlocks, kRepeatBlocks, 0));
      }
      VectorBarrier();
      return;
    }
    for (uint32_t column = 0; column < Pitch(); column += Chunk()) {
      Sub(dst[column], src[column], spread, kCeLanes, Repeats(), Params(Tile(), Tile(), Value()));
    }
    VectorBarrier();
  }

  // dst = src * columns, one factor per column.
  __aicore__ inline void MultiplyColumns(const LocalTensor<float>& dst, const LocalTensor<float>& src,
                                         const LocalTensor<float>& columns) const {
    for (uint32_t column = 0; column < Pitch(); column += Chunk()) {
      Mul(dst[column], src[column], columns[column], kCeLanes, Repeats(), Params(Tile(), Tile(), Column()));
    }
    VectorBarrier();
  }

  // dst = source where tile equals the row's value, `otherwise` elsewhere. `source` has one number per column, or with
  // `each` one per element; `bits` has room for a bit per element of a chunk.
  __aicore__ inline void SelectEqual(const LocalTensor<float>& dst, const LocalTensor<float>& tile,
                                     const LocalTensor<float>& values, const LocalTensor<float>& source, bool each,
                                     float otherwise, const LocalTensor<uint8_t>& bits) const {
    const LocalTensor<float> spread = Spread(values);
    for (uint32_t column = 0; column < Pitch(); column += Chunk()) {
      Compare(bits, tile[column], spread, CMPMODE::EQ, uint64_t(kCeLanes), Repeats(),
              Params(SideBySide(), Tile(), Value()));
      SelectChunk(dst[column], source[column], each, otherwise, bits);
    }
  }

  // The same, where the element is a NaN.
  __aicore__ inline void SelectNan(const LocalTensor<float>& dst, const LocalTensor<float>& tile,
                                   const LocalTensor<float>& source, float otherwise,
                                   const LocalTensor<uint8_t>& bits) const {
    for (uint32_t column = 0; column < Pitch(); column += Chunk()) {
      Compare(bits, tile[column], tile[column], CMPMODE::NE, uint64_t(kCeLanes), Repeats(),
              Params(SideBySide(), Tile(), Tile()));
      SelectChunk(dst[column], source[column], false, otherwise, bits);
    }
  }

 private:
  // Whether there are no more rows than chunks in a row: instructions then go row by row rather than chunk by chunk.
  __aicore__ inline bool FewerThanChunks() const { return !ByBlocks() && Rows() <= Pitch() / Chunk(); }

  __aicore__ inline LocalTensor<float> Spread(const LocalTensor<float>& values) const {
    const LocalTensor<float> spread = scratch_.Get<float>();
    SpreadToBlocks(spread, values, Rows());
    VectorBarrier();
    return spread;
  }

  // Folds the chunks of each row into one; the results are contiguous.
  template <class Op>
  __aicore__ inline LocalTensor<float> FoldChunks(const LocalTensor<float>& tile) const {
    if (Pitch() == Chunk()) {
      return tile;
    }
    const LocalTensor<float> folded = scratch_.Get<float>();
    Op::Apply(folded, tile, tile[Chunk()], uint64_t(kCeLanes), Repeats(), Params(SideBySide(), Tile(), Tile()));
    VectorBarrier();
    if (FewerThanChunks()) {  // adds in the same order as below
      for (uint32_t row = 0; row < Rows() && Pitch() > 2 * Chunk(); ++row) {
        const LocalTensor<float> of_row = folded[row * kCeLanes];
        Op::Apply(of_row, tile[row * Pitch() + 2 * kCeLanes], of_row, uint64_t(kCeLanes), Pitch() / kCeLanes - 2,
                  BinaryRepeatParams(1, 1, 1, 0, kRepeatBlocks, 0));
      }
      VectorBarrier();
      return folded;
    }
    for (uint32_t column = 2 * Chunk(); column < Pitch(); column += Chunk()) {
      Op::Apply(folded, folded, tile[column], uint64_t(kCeLanes), Repeats(),
                Params(SideBySide(), SideBySide(), Tile()));
      VectorBarrier();
    }
    return folded;
  }

  __aicore__ inline void SelectChunk(const LocalTensor<float>& dst, const LocalTensor<float>& source, bool each,
                                     float otherwise, const LocalTensor<uint8_t>& bits) const {
    const Strides of_source = each ? Tile() : Column();
    VectorBarrier();
    Select(dst, bits, source, otherwise, SELMODE::VSEL_TENSOR_SCALAR_MODE, uint64_t(kCeLanes), Repeats(),
           Params(Tile(), of_source, of_source));
    VectorBarrier();
  }

  uint32_t columns_;
  // For rows folded to a chunk each, or for values spread to blocks. TBuf's Get is not const.
  mutable TBuf<QuePosition::VECCALC> scratch_;
};

}  // namespace npu_ce
