// SPDX-License-Identifier: Apache-2.0
// The targets of a group of rows: for each row a class that is safe to look up, a bit that says whether its target is a
// class at all, and one that says whether the row counts. 64-bit targets are compared word by word: the vector unit has
// no 64-bit comparison, and compares int32 for equality only (page Compare).
#pragma once

#include "lanes.h"

namespace npu_ce {

class Targets {
 public:
  // `capacity` rows, a multiple of 64. With two buffers, the next rows can be read ahead.
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, uint32_t capacity, uint32_t buffers = 1) {
    capacity_ = capacity;
    classes_in_row_ = static_cast<int32_t>(problem.classes);
    wide_ = problem.target_dtype == kCeInt64;
    // int32 words: a 64-bit target is two, the low one first.
    words_ = InGm<int32_t>(problem.target, problem.rows * WordsOfRow());
    const TargetBytes bytes(problem.target_dtype, capacity);
    pipe->InitBuffer(in_, buffers, bytes.in);
    pipe->InitBuffer(low_, bytes.low);
    pipe->InitBuffer(classes_, bytes.classes);
    pipe->InitBuffer(bits_, bytes.bits);
    pipe->InitBuffer(constants_, bytes.constants);

    // Compare takes whole repeats, of which rows may fill only a part: initialise the rest.
    LocalTensor<int32_t> raw[2];
    for (uint32_t i = 0; i < buffers; ++i) {
      raw[i] = in_.AllocTensor<int32_t>();
      Duplicate(raw[i], int32_t(0), capacity * WordsOfRow());
    }
    for (uint32_t i = 0; i < buffers; ++i) {
      in_.FreeTensor(raw[i]);
    }
    Duplicate(Constant(kIgnoredLow), static_cast<int32_t>(problem.ignore_index), kCeLanes);
    Duplicate(Constant(kIgnoredHigh), static_cast<int32_t>(problem.ignore_index >> 32), kCeLanes);
    Duplicate(Constant(kZero), int32_t(0), kCeLanes);
    VectorBarrier();
  }

  // Rows `first` to `first + rows`, for the vector unit; the scalar unit has to wait for them.
  __aicore__ inline void Load(uint64_t first, uint32_t rows) {
    Read(first, rows);
    Find(rows);
  }
  __aicore__ inline void Read(uint64_t first, uint32_t rows) {
    const LocalTensor<int32_t> raw = in_.AllocTensor<int32_t>();
    CopyIn(raw, words_[first * WordsOfRow()], rows * WordsOfRow());
    in_.EnQue(raw);
  }
  __aicore__ inline void Find(uint32_t rows) {
    const uint32_t count = CeilTo(rows, kCeLanes);
    LocalTensor<int32_t> raw = in_.DeQue<int32_t>();
    const LocalTensor<int32_t> low = low_.Get<int32_t>(), high = Classes();  // holds the high words first
    if (wide_) {
      uint64_t taken = 0;
      const GatherMaskParams words(1, count * WordsOfRow() / kCeLanes, 8, 0);
      GatherMask(low, raw, 1, false, 0, words, taken);
      GatherMask(high, raw, 2, false, 0, words, taken);
    } else {
      Adds(low, raw, int32_t(0), count);
      VectorBarrier();
      ShiftRight(high, low, int32_t(31), count);  // the sign
    }
    in_.FreeTensor(raw);
    VectorBarrier();

    Equal(kCounted, low, Constant(kIgnoredLow), count, 0);
    Equal(kScratch, high, Constant(kIgnoredHigh), count, 0);
    Equal(kValid, high, Constant(kZero), count, 0);
    Maxs(Classes(), low, int32_t(0), count);
    VectorBarrier();
    And(Bits16(kCounted), Bits16(kCounted), Bits16(kScratch), count / 16);
    Mins(Classes(), Classes(), classes_in_row_ - 1, count);
    VectorBarrier();
    Not(Bits16(kCounted), Bits16(kCounted), count / 16);
    Equal(kScratch, low, Classes(), count, kCeLanes / kBlockFloats);
    VectorBarrier();
    And(Bits16(kValid), Bits16(kValid), Bits16(kScratch), count / 16);  // readers have a barrier of their own
  }

  // The row's class; some valid class where the target is none, so that lookups by it stay in bounds.
  __aicore__ inline LocalTensor<int32_t> Classes() { return classes_.Get<int32_t>(); }
  // A bit for each row, as Select takes them. The target is in [0, classes):
  __aicore__ inline LocalTensor<uint8_t> Valid() { return Bits(kValid); }
  // The target is not ignore_index:
  __aicore__ inline LocalTensor<uint8_t> Counted() { return Bits(kCounted); }
  // Free for the caller:
  __aicore__ inline LocalTensor<uint8_t> Scratch() { return Bits(kScratch); }

 private:
  enum BitVector : uint32_t { kValid, kCounted, kScratch, kBitVectors };
  enum ConstantLanes : uint32_t { kIgnoredLow, kIgnoredHigh, kZero, kConstants };
  static_assert(kBitVectors == TargetBytes::kBitVectors && kConstants == TargetBytes::kConstants);

  __aicore__ inline uint32_t WordsOfRow() const { return wide_ ? 2 : 1; }
  __aicore__ inline LocalTensor<uint8_t> Bits(uint32_t which) {
    return bits_.GetWithOffset<uint8_t>(BitBytes(capacity_), which * BitBytes(capacity_));
  }
  __aicore__ inline LocalTensor<uint16_t> Bits16(uint32_t which) { return Bits(which).ReinterpretCast<uint16_t>(); }
  __aicore__ inline LocalTensor<int32_t> Constant(uint32_t which) {
    return constants_.Get<int32_t>()[which * kCeLanes];
  }

  // A stride of 0 compares every repeat with the same lanes.
  __aicore__ inline void Equal(uint32_t which, const LocalTensor<int32_t>& a, const LocalTensor<int32_t>& b,
                               uint32_t count, uint8_t stride_of_b) {
    constexpr uint8_t step = kCeLanes / kBlockFloats;
    Compare(Bits(which), a, b, CMPMODE::EQ, uint64_t(kCeLanes), count / kCeLanes,
            BinaryRepeatParams(1, 1, 1, step, step, stride_of_b));
  }

  uint32_t capacity_;
  int32_t classes_in_row_;
  bool wide_;
  GlobalTensor<int32_t> words_;
  TQue<QuePosition::VECIN, 1> in_;
  TBuf<QuePosition::VECCALC> low_, classes_, bits_, constants_;
};

}  // namespace npu_ce
