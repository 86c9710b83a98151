// SPDX-License-Identifier: Apache-2.0
// Arithmetic on vectors over the rows of a group. A barrier follows each instruction, since hardware starts a vector
// instruction before its predecessor has ended (manual, PipeBarrier); the instructions are short.
#pragma once

#include "../common/lanes.h"

namespace npu_ce {

class RowMath {
 public:
  using Floats = LocalTensor<float>;
  using Bits = LocalTensor<uint8_t>;

  // The rows of the current group, rounded up to whole repeats.
  __aicore__ inline void SetRows(uint32_t rows) { count_ = CeilTo(rows, kCeLanes); }
  __aicore__ inline uint32_t Count() const { return count_; }

  __aicore__ inline void Fill(const Floats& to, float value) const {
    AscendC::Duplicate(to, value, count_);
    VectorBarrier();
  }
  __aicore__ inline void Add(const Floats& to, const Floats& a, const Floats& b) const {
    AscendC::Add(to, a, b, count_);
    VectorBarrier();
  }
  __aicore__ inline void Subtract(const Floats& to, const Floats& a, const Floats& b) const {
    AscendC::Sub(to, a, b, count_);
    VectorBarrier();
  }
  __aicore__ inline void Multiply(const Floats& to, const Floats& a, const Floats& b) const {
    AscendC::Mul(to, a, b, count_);
    VectorBarrier();
  }
  __aicore__ inline void Add(const Floats& to, const Floats& a, float b) const {
    AscendC::Adds(to, a, b, count_);
    VectorBarrier();
  }
  __aicore__ inline void Multiply(const Floats& to, const Floats& a, float b) const {
    AscendC::Muls(to, a, b, count_);
    VectorBarrier();
  }
  __aicore__ inline void AtLeast(const Floats& to, const Floats& a, float b) const {
    AscendC::Maxs(to, a, b, count_);
    VectorBarrier();
  }
  __aicore__ inline void Exp(const Floats& to, const Floats& a) const {
    AscendC::Exp(to, a, count_);
    VectorBarrier();
  }

  // to = chosen ? a : b
  __aicore__ inline void Select(const Floats& to, const Bits& chosen, const Floats& a, float b) const {
    AscendC::Select(to, chosen, a, b, SELMODE::VSEL_TENSOR_SCALAR_MODE, count_);
    VectorBarrier();
  }

  // A bit for each row.
  __aicore__ inline void Equal(const Bits& to, const Floats& a, const Floats& b) const {
    AscendC::Compare(to, a, b, CMPMODE::EQ, count_);
    VectorBarrier();
  }
  __aicore__ inline void Not(const Bits& bits) const {
    const LocalTensor<uint16_t> words = bits.ReinterpretCast<uint16_t>();
    AscendC::Not(words, words, count_ / 16);
    VectorBarrier();
  }

  // to = exp(x) - 1 for x up to about 0, to the last digits near 0 too. Two scratch vectors.
  //
  // x is split into near >= -1/4 and far <= 0: e^x - 1 = e^far (e^near - 1) + (e^far - 1), where e^far is 1 for x near
  // 0, and nothing cancels elsewhere. e^near - 1 is its Taylor series to near^6, whose rest is below 2^-24 of it.
  __aicore__ inline void Expm1(const Floats& to, const Floats& x, const Floats& near, const Floats& far) const {
    AtLeast(near, x, -0.25f);
    Subtract(far, x, near);
    Exp(far, far);
    Multiply(to, near, 1.0f / 720);
    Add(to, to, 1.0f / 120);
    Multiply(to, to, near);
    Add(to, to, 1.0f / 24);
    Multiply(to, to, near);
    Add(to, to, 1.0f / 6);
    Multiply(to, to, near);
    Add(to, to, 0.5f);
    Multiply(to, to, near);
    Add(to, to, 1.0f);
    Multiply(to, to, near);
    Multiply(to, to, far);
    Add(far, far, -1.0f);
    Add(to, to, far);
  }

 private:
  uint32_t count_;  // whole repeats
};

}  // namespace npu_ce
