// SPDX-License-Identifier: Apache-2.0
// Reductions of a tile lane by lane: 64 float32 lanes are one vector repeat, so n - 1 repeats reduce a tile of n to
// one, without a wait for the scalar unit. The order depends on the tile's length alone.
#pragma once

#include "tile_io.h"

namespace npu_ce {

constexpr uint32_t kRepeatBlocks = kCeLanes / kBlockFloats;
constexpr float kInfinity = __builtin_inff();
constexpr float kLargestFloat = 3.402823466e38f;

// exp of minus this is 0 in float32. The entropy's term and its gradient are 0 for a logit of -inf, so x' - max is
// raised to minus this before it is multiplied: 0 * -inf would be NaN.
constexpr float kExponentOfZero = 104.0f;

__aicore__ inline void VectorBarrier() { PipeBarrier<PIPE_V>(); }

// One pipe waits for everything that has been issued to another.
template <HardEvent event>
__aicore__ inline void Order() {
  const int32_t id = GetTPipePtr()->FetchEventID(event);
  SetFlag<event>(id);
  WaitFlag<event>(id);
}

__aicore__ inline uint32_t Repeats(uint32_t columns) { return (columns + kCeLanes - 1) / kCeLanes; }

// Sets the lanes behind `count`, up to a whole repeat. A vector instruction begins at a multiple of 32 bytes, a tail
// anywhere, so a mask protects the elements in front of it.
__aicore__ inline void FillTail(const LocalTensor<float>& tile, uint32_t count, float value) {
  const uint32_t tail = count % kCeLanes;
  if (tail == 0) {
    return;
  }
  uint64_t mask[2] = {~uint64_t(0) << tail, 0};
  Duplicate(tile[count - tail], value, mask, 1, 1, kRepeatBlocks);
  VectorBarrier();
}

// to[i] = i. Only for Init, on a buffer that nothing has used yet: the scalar unit writes the first 32 bytes without a
// wait for earlier instructions, and every further 32 bytes, beyond 256 bytes every 256, take an instruction, with
// barriers between them but none behind the last (page CreateVecIndex, and its implementation for this chip).
template <class T>
__aicore__ inline void CountUp(const LocalTensor<T>& to, uint32_t count) {
  CreateVecIndex(to, T(0), count);
  VectorBarrier();
}

// to[i] = i * step: byte offsets, as Gather takes them.
__aicore__ inline void CountBytes(const LocalTensor<int32_t>& to, uint32_t step, uint32_t count) {
  CountUp(to, count);
  Muls(to, to, static_cast<int32_t>(step), count);
  VectorBarrier();
}

struct MaxOf {
  static constexpr bool kIdempotent = true;
  template <class... Arguments>
  __aicore__ static inline void Apply(Arguments... arguments) {
    Max(arguments...);
  }
};
struct MinOf {
  static constexpr bool kIdempotent = true;
  template <class... Arguments>
  __aicore__ static inline void Apply(Arguments... arguments) {
    Min(arguments...);
  }
};
struct SumOf {
  static constexpr bool kIdempotent = false;
  template <class... Arguments>
  __aicore__ static inline void Apply(Arguments... arguments) {
    Add(arguments...);
  }
};

// How many of `repeats` are left when the rest is folded onto their front. Half of them, made odd: operands an odd
// number of repeats apart begin in different bank groups (page "Avoid bank conflicts").
__aicore__ inline uint32_t FoldedRepeats(uint32_t repeats) {
  const uint32_t half = (repeats + 1) / 2;
  return half % 2 == 0 ? half + 1 : half;
}

// Leaves the result of all repeats in the first. Halves are combined first, which rounds less, by one instruction a
// level. One instruction then combines each of the last 20 repeats with the first: its dst and second operand have a
// repeat stride of 0, so a repeat reads what the one before wrote, which is allowed (general constraints of the vector
// APIs, overlapping addresses).
template <class Op>
__aicore__ inline void Fold(const LocalTensor<float>& tile, uint32_t repeats) {
  constexpr uint32_t kFew = 20;
  while (repeats > kFew) {
    const uint32_t left = FoldedRepeats(repeats);
    Op::Apply(tile, tile, tile[left * kCeLanes], (repeats - left) * kCeLanes);
    VectorBarrier();
    repeats = left;
  }
  if (repeats > 1) {
    Op::Apply(tile, tile[kCeLanes], tile, kCeLanes, repeats - 1, BinaryRepeatParams(1, 1, 1, 0, kRepeatBlocks, 0));
    VectorBarrier();
  }
}

// Folds the repeats of a tile to about half of them in `folded`, and returns how many. The tile stays as it is.
template <class Op>
__aicore__ inline uint32_t FoldOnce(const LocalTensor<float>& folded, const LocalTensor<float>& tile,
                                    uint32_t repeats) {
  uint32_t left;
  if (Op::kIdempotent) {  // repeats in the middle are combined twice
    const uint32_t apart = repeats > 1 ? (repeats / 2 - 1) | 1 : 0;
    left = repeats - apart;
    Op::Apply(folded, tile, tile[apart * kCeLanes], left * kCeLanes);
  } else {
    left = FoldedRepeats(repeats);
    const uint32_t pairs = repeats - left;
    if (pairs > 0) {
      Op::Apply(folded, tile, tile[left * kCeLanes], pairs * kCeLanes);
    }
    if (left > pairs) {
      Adds(folded[pairs * kCeLanes], tile[pairs * kCeLanes], 0.0f, (left - pairs) * kCeLanes);
    }
  }
  VectorBarrier();
  return left;
}

// Fold with the result in `folded`, which has room for half of the repeats and two more; the tile stays as it is.
template <class Op>
__aicore__ inline void FoldInto(const LocalTensor<float>& folded, const LocalTensor<float>& tile, uint32_t repeats) {
  Fold<Op>(folded, FoldOnce<Op>(folded, tile, repeats));
}

// Folds back and forth between two buffers, and returns the one with the result. In place, both halves would be read
// from the banks that are written; another third of the UB has other banks. Repeats of a sum that have no partner are
// copied; below 64 repeats that copy costs more than it saves.
template <class Op>
__aicore__ inline LocalTensor<float> FoldByTurns(const LocalTensor<float>& tile, const LocalTensor<float>& other,
                                                 uint32_t repeats) {
  constexpr uint32_t kFew = Op::kIdempotent ? 20 : 64;
  LocalTensor<float> from = tile, to = other;
  while (repeats > kFew) {
    repeats = FoldOnce<Op>(to, from, repeats);
    const LocalTensor<float> folded = to;
    to = from;
    from = folded;
  }
  Fold<Op>(from, repeats);
  return from;
}

// dst = src - lanes, with the same 64 lanes for every repeat: a repeat stride of 0.
__aicore__ inline void SubLanes(const LocalTensor<float>& dst, const LocalTensor<float>& src,
                                const LocalTensor<float>& lanes, uint32_t repeats) {
  for (uint32_t done = 0; done < repeats; done += kMaxRepeats) {
    Sub(dst[done * kCeLanes], src[done * kCeLanes], lanes, kCeLanes, Least(repeats - done, kMaxRepeats),
        BinaryRepeatParams(1, 1, 1, kRepeatBlocks, kRepeatBlocks, 0));
  }
}

// Repeats every value eight times in a block of its own, which an instruction can read with a stride of 0.
__aicore__ inline void SpreadToBlocks(const LocalTensor<float>& blocks, const LocalTensor<float>& values,
                                      uint32_t count) {
  const uint32_t repeats = (count + kBlockFloats - 1) / kBlockFloats;
  for (uint32_t done = 0; done < repeats; done += kMaxRepeats) {
    const uint32_t first = done * kBlockFloats;
    Brcb(blocks[first * kBlockFloats], values[first], Least(repeats - done, kMaxRepeats), BrcbRepeatParams(1, 8));
  }
}

}  // namespace npu_ce
