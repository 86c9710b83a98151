// SPDX-License-Identifier: Apache-2.0
// How instructions go over a tile of many short rows, `pitch` floats apart. A row is cut into chunks, and one
// instruction works on the same chunk of all rows: on eight floats of eight rows a repeat where the strides' 8-bit
// fields hold that (a pitch up to 248), else on 64 floats of one row.
#pragma once

#include "lanes.h"

namespace npu_ce {

class RowChunks {
 public:
  // In blocks of 32 bytes: within a repeat, and from repeat to repeat.
  struct Strides {
    uint8_t block;
    uint8_t repeat;
  };

  // A tile has a multiple of 8 rows: at most kMaxRepeats * 8 by blocks, else kMaxRepeats.
  __aicore__ inline void Init(uint32_t pitch) {
    pitch_ = pitch;
    by_blocks_ = pitch <= kCeBlockPitch;
    chunk_ = by_blocks_ ? kBlockFloats : kCeLanes;
    const uint8_t blocks_of_row = pitch / kBlockFloats;
    tile_ = by_blocks_ ? Strides{blocks_of_row, static_cast<uint8_t>(8 * blocks_of_row)} : Strides{1, blocks_of_row};
    value_ = by_blocks_ ? Strides{1, 8} : Strides{0, 1};
    column_ = by_blocks_ ? Strides{0, 0} : Strides{1, 0};
  }

  // The rows that instructions work on from now on.
  __aicore__ inline void SetRows(uint32_t rows) {
    rows_ = by_blocks_ ? CeilTo(rows, kBlockFloats) : rows;
    repeats_ = by_blocks_ ? rows_ / kBlockFloats : rows_;
  }

  __aicore__ inline uint32_t Pitch() const { return pitch_; }
  __aicore__ inline uint32_t Chunk() const { return chunk_; }
  __aicore__ inline bool ByBlocks() const { return by_blocks_; }
  __aicore__ inline uint32_t Rows() const { return rows_; }  // in whole instructions
  __aicore__ inline uint32_t Repeats() const { return repeats_; }
  __aicore__ inline uint32_t Count() const { return rows_ * pitch_; }

  // Lanes of the chunk that begins `at` floats into the rows; a row's last chunk may be short.
  __aicore__ inline uint64_t Lanes(uint32_t at) const { return by_blocks_ ? kCeLanes : Least(kCeLanes, pitch_ - at); }

  __aicore__ inline Strides Tile() const { return tile_; }      // of a chunk of every row, in the tile
  __aicore__ inline Strides Value() const { return value_; }    // of a row's number, in a block of its own
  __aicore__ inline Strides Column() const { return column_; }  // of one number per column, the same in all rows
  // Of contiguous chunks; and of bits, which are contiguous whatever the strides are. Not a constant: to copy one takes
  // its address, for which device code may have no memory.
  __aicore__ static inline Strides SideBySide() { return {1, 8}; }

  __aicore__ static inline BinaryRepeatParams Params(Strides to, Strides a, Strides b) {
    return BinaryRepeatParams(to.block, a.block, b.block, to.repeat, a.repeat, b.repeat);
  }

  // values[row] = the sum of the row's chunk of `folded`.
  __aicore__ inline void SumChunks(const LocalTensor<float>& values, const LocalTensor<float>& folded) const {
    if (by_blocks_) {
      BlockReduceSum(values, folded, repeats_, kCeLanes, 1, 1, 8);
    } else {
      WholeReduceSum(values, folded, kCeLanes, repeats_, 1, 1, 8);
    }
    VectorBarrier();
  }

 private:
  uint32_t pitch_, chunk_, rows_, repeats_;
  bool by_blocks_;
  Strides tile_, value_, column_;
};

}  // namespace npu_ce
