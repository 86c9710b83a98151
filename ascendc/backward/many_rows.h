// SPDX-License-Identifier: Apache-2.0
// Backward's arithmetic on a tile of many rows, chunk by chunk. A number of a row is repeated eight times in a block of
// its own, and combined with each of the row's elements.
#pragma once

#include "../common/row_chunks.h"
#include "rows.h"

namespace npu_ce {

class ManyRows : public RowChunks {
 public:
  using Numbers = LocalTensor<float>;  // one for each row
  using Floats = LocalTensor<float>;

  __aicore__ inline void Init(TPipe* pipe, const BackwardRows* rows, const CeBackwardPlan& plan) {
    RowChunks::Init(plan.tile_columns);
    offset = rows->offset;
    spread = rows->spread;
    slope = rows->slope;
    smooth = rows->smooth;
    if (plan.buffers.row_blocks > 0) pipe->InitBuffer(blocks_, plan.buffers.row_blocks);
    pipe->InitBuffer(column_index_, plan.buffers.column_index);
    pipe->InitBuffer(bits_, plan.buffers.bits);
    CountUp(column_index_.Get<float>(), CeilTo(Pitch(), kCeLanes));  // Compare takes whole repeats
  }

  // Where the gradient of the current tile will be written. In a half dtype that is the last step, and until then this
  // buffer holds the rows' blocks.
  template <class T>
  __aicore__ inline void SetOut(const LocalTensor<T>& out) {
    out_ = out.template ReinterpretCast<float>();
    spread_ = kIsFloat<T> ? blocks_.Get<float>() : out_;
  }

  __aicore__ inline void Add(const Floats& to, const Floats& x, const Numbers& value) const {
    Spread(value);
    for (uint32_t at = 0; at < Pitch(); at += Chunk()) {
      AscendC::Add(to[at], x[at], spread_, Lanes(at), Repeats(), Params(Tile(), Tile(), Value()));
    }
    VectorBarrier();
  }
  __aicore__ inline void Multiply(const Floats& to, const Floats& x, const Numbers& value) const {
    Spread(value);
    for (uint32_t at = 0; at < Pitch(); at += Chunk()) {
      Mul(to[at], x[at], spread_, Lanes(at), Repeats(), Params(Tile(), Tile(), Value()));
    }
    VectorBarrier();
  }
  __aicore__ inline void Subtract(const Floats& from, const Numbers& value) const {
    Spread(value);
    for (uint32_t at = 0; at < Pitch(); at += Chunk()) {
      Sub(from[at], from[at], spread_, Lanes(at), Repeats(), Params(Tile(), Tile(), Value()));
    }
    VectorBarrier();
  }
  __aicore__ inline void SubtractWeights(const Floats& from, const Floats& weights, const Numbers& factor,
                                         const Floats& scratch) const {
    Spread(factor);
    for (uint32_t at = 0; at < Pitch(); at += Chunk()) {
      Mul(scratch[at], weights[at], spread_, Lanes(at), Repeats(), Params(Tile(), Column(), Value()));
    }
    VectorBarrier();
    Sub(from, from, scratch, Count());
    VectorBarrier();
  }

  // to[column of the row] = value of the row, in every row.
  __aicore__ inline void SetColumn(const Floats& to, const Numbers& column, const Numbers& value) const {
    const LocalTensor<uint8_t> bits = bits_.Get<uint8_t>();
    const Floats index = column_index_.Get<float>();
    const uint32_t bits_of_chunk = CeilTo(Repeats() * kCeLanes / 8, kBlockBytes);
    Spread(column);
    for (uint32_t at = 0; at < Pitch(); at += Chunk()) {
      Compare(bits[at / Chunk() * bits_of_chunk], index[at], spread_, CMPMODE::EQ, uint64_t(kCeLanes), Repeats(),
              Params(SideBySide(), Column(), Value()));
    }
    Spread(value);
    for (uint32_t at = 0; at < Pitch(); at += Chunk()) {
      Select(to[at], bits[at / Chunk() * bits_of_chunk], spread_, to[at], SELMODE::VSEL_TENSOR_TENSOR_MODE, Lanes(at),
             Repeats(), Params(Tile(), Value(), Tile()));
    }
    VectorBarrier();
  }

  // Zeros the rows whose `keep`, 0 or -1 as an integer, is 0. By And of the bits, because 0 * NaN is not 0.
  __aicore__ inline void ZeroUnless(const Floats& tile, const LocalTensor<int32_t>& keep) const {
    Spread(keep.ReinterpretCast<float>());
    const LocalTensor<uint16_t> blocks = spread_.ReinterpretCast<uint16_t>();
    for (uint32_t at = 0; at < Pitch(); at += Chunk()) {
      const LocalTensor<uint16_t> part = tile[at].ReinterpretCast<uint16_t>();
      And(part, part, blocks, 2 * Lanes(at), Repeats(), Params(Tile(), Tile(), Value()));
    }
    VectorBarrier();
  }

  // sums[row] = the sum of the row. The tile has to be 0 behind the end of each row. Has a barrier for the tile itself.
  __aicore__ inline void Sums(const Floats& sums, const Floats& tile) const {
    Duplicate(out_, 0.0f, Repeats() * kCeLanes);
    VectorBarrier();
    for (uint32_t at = 0; at < Pitch(); at += Chunk()) {
      AscendC::Add(out_, out_, tile[at], Lanes(at), Repeats(), Params(SideBySide(), SideBySide(), Tile()));
      VectorBarrier();
    }
    SumChunks(sums, out_);
  }

  Numbers offset;
  Numbers spread;
  Numbers slope;
  Numbers smooth;

 private:
  __aicore__ inline void Spread(const Numbers& value) const {
    SpreadToBlocks(spread_, value, Rows());
    VectorBarrier();
  }

  Floats out_;
  Floats spread_;
  mutable TBuf<QuePosition::VECCALC> blocks_, column_index_, bits_;  // TBuf's Get is not const
};

}  // namespace npu_ce
