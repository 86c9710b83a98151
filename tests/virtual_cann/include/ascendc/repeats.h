// SPDX-License-Identifier: Apache-2.0
// The base of every vector instruction. An instruction works in repeats: 256 bytes, in eight blocks of 32, of its
// widest operand. A mask says which lanes of a repeat take part. The operands are judged first. Then the arithmetic
// gets the lanes in runs that are contiguous in all operands: with ordinary strides the whole instruction is one run.
#pragma once

#include <algorithm>
#include <string>
#include <tuple>

#include "machine/core.h"
#include "tensor.h"
#include "types.h"

namespace virtual_cann::api {

// Not inlined into each call: that would be most of a kernel's compile time.
#define VIRTUAL_CANN_ONCE __attribute__((noinline)) inline

constexpr uint32_t kBlocksPerRepeat = kRepeatBytes / kBlockBytes;
constexpr VectorMask kFullMask{~uint64_t{0}, ~uint64_t{0}, false};

// Calls f(0) to f(size - 1), which must be independent. Groups of sixteen, which compilers vectorise at -O2.
template <class F>
inline void for_lanes(uint32_t size, F f) {
  uint32_t i = 0;
  for (; i + 16 <= size; i += 16) {
#pragma GCC ivdep
    for (uint32_t k = 0; k < 16; ++k) f(i + k);
  }
  for (; i < size; ++i) f(i);
}

// The mask argument of an instruction: a number of lanes, or their bits.
struct MaskArgument {
  template <class Integer, class = std::enable_if_t<std::is_integral_v<Integer>>>
  MaskArgument(Integer lanes) : count(static_cast<uint64_t>(lanes)) {}
  MaskArgument(const uint64_t* mask) : bits(mask) {}

  uint64_t count = 0;
  const uint64_t* bits = nullptr;
};

// The lanes of an instruction, `lanes` of them a repeat.
struct Extent {
  uint32_t lanes;
  VectorMask mask;
  uint32_t repeats;

  bool has(uint32_t lane) const { return lane < 64 ? mask.low >> lane & 1 : mask.high >> (lane - 64) & 1; }
  uint32_t lanes_of(uint32_t repeat) const {  // of them, the mask may leave some out
    return mask.counter ? static_cast<uint32_t>(std::min<uint64_t>(lanes, mask.low - uint64_t{repeat} * lanes)) : lanes;
  }
  bool active(uint32_t repeat, uint32_t lane) const { return lane < lanes_of(repeat) && (mask.counter || has(lane)); }
  bool full() const {
    const auto all = [](uint64_t bits, uint32_t wanted) { return wanted >= 64 ? !~bits : !(~bits << (64 - wanted)); };
    return mask.counter || (all(mask.low, lanes) && (lanes <= 64 || all(mask.high, lanes - 64)));
  }
  uint64_t elements() const {  // if the extent is full
    return mask.counter ? mask.low : uint64_t{lanes} * repeats;
  }

  // The first active lane of [begin, end), or end.
  uint32_t first_active(uint32_t repeat, uint32_t begin, uint32_t end) const {
    while (begin < end && !active(repeat, begin)) ++begin;
    return begin;
  }
  // The number of lanes up to the last active one.
  uint32_t end_of(uint32_t repeat) const {
    uint32_t end = lanes_of(repeat);
    while (end > 0 && !active(repeat, end - 1)) --end;
    return end;
  }

  // visit(first, end) for the runs of active lanes of a repeat, cut at multiples of `cut`.
  template <class Visit>
  void for_runs(uint32_t repeat, uint32_t cut, Visit visit) const {
    for (uint32_t lane = first_active(repeat, 0, lanes); lane < lanes;) {
      const uint32_t first = lane, limit = std::min(lanes, (first / cut + 1) * cut);
      while (lane < limit && active(repeat, lane)) ++lane;
      visit(first, lane);
      lane = first_active(repeat, lane, lanes);
    }
  }
};

// One operand: the places of its elements.
struct Operand {
  uint32_t address;
  uint32_t bytes;  // up to the tensor's end
  uint32_t size;   // of an element
  uint32_t block_stride = 1;
  uint32_t repeat_stride = kBlocksPerRepeat;

  uint32_t per_block() const { return kBlockBytes / size; }
  uint64_t offset(uint32_t repeat, uint32_t lane) const {
    return (uint64_t{repeat} * repeat_stride + uint64_t{lane / per_block()} * block_stride) * kBlockBytes +
           lane % per_block() * size;
  }
  uint32_t at(uint32_t repeat, uint32_t lane) const { return address + static_cast<uint32_t>(offset(repeat, lane)); }
  // Whether the lanes of all repeats are contiguous.
  bool contiguous(uint32_t lanes) const { return block_stride == 1 && repeat_stride * kBlockBytes == lanes * size; }
};

// An operand with the default strides, in an instruction whose widest element has `widest` bytes.
template <class T>
Operand operand(const AscendC::LocalTensor<T>& tensor, uint32_t widest = sizeof(T)) {
  return {tensor.address(), tensor.bytes(), sizeof(T), 1, static_cast<uint32_t>(kBlocksPerRepeat * sizeof(T) / widest)};
}

// Sets the mask register to the first `count` lanes of a repeat; judged as part of the current instruction.
void set_lanes(Core& core, uint32_t lanes, uint64_t count);

// A call of a vector API. Its methods judge the arguments, and continue with the values that were meant. `accumulates`:
// the second source may be what an earlier repeat wrote, if it or dst has a repeat stride of 0.
class VectorCall {
 public:
  VectorCall(const char* api, Place place, VectorClass kind, bool accumulates = false)
      : core(Core::current()), kind(kind), accumulates(accumulates) {
    core.issue(Pipe::V, api, place);
  }

  [[noreturn]] void wrong_type() { core.stop(Rule::type, "a type for which A2 has the instruction", "another"); }

  // Repeats under the current mask registers.
  Extent repeats(uint32_t lanes, int64_t meant);
  // The same after setting the mask register, for the forms with a mask argument.
  Extent masked(uint32_t lanes, MaskArgument mask, int64_t repeats);
  // Repeats of an instruction without a mask.
  Extent unmasked(uint32_t lanes, int64_t repeats);
  // The first `count` elements, in counter mode. Afterwards the mask registers have their defaults.
  Extent counted(uint32_t lanes, int64_t count);

  void require_alignment(const Operand& operand, uint32_t alignment = kBlockBytes) {
    if (operand.address % alignment) misaligned(operand.address, alignment);
  }
  void require_length(const Operand& operand, uint64_t bytes) {
    if (bytes > operand.bytes) too_long(operand.bytes, bytes);
  }
  void require_length(const Operand& operand, const Extent& extent);
  void require_operand(const Operand& operand, const Extent& extent) {
    require_alignment(operand);
    require_length(operand, extent);
  }
  // dst and src coincide or are disjoint, block for block, and no repeat reads what an earlier one wrote.
  void require_apart(const Operand& dst, const Operand& src, const Extent& extent, bool second = false);
  // dst and [address, address + bytes) are disjoint.
  void require_disjoint(Rule rule, const Operand& dst, const Extent& extent, uint32_t address, uint64_t bytes);

  void require_range(Rule rule, const char* what, int64_t meant, int64_t limit);

  void work(uint64_t repeats) { core.vector_work(kind, repeats); }
  // Reports the work, with each operand's number of active blocks in a repeat; dst may be null.
  template <class... Sources>
  void work(const Extent& extent, const Operand* dst, const Sources&... sources) {
    static_assert(sizeof...(sources) <= kMostSources);
    const auto banks = [&](const Operand& operand) {
      const uint32_t lanes = extent.repeats ? extent.end_of(0) : 0;
      return BankOperand{operand.address, operand.block_stride, operand.repeat_stride,
                         (lanes + operand.per_block() - 1) / operand.per_block()};
    };
    core.vector_work(kind, extent.repeats, {extent.repeats, dst ? banks(*dst) : BankOperand{}, {banks(sources)...}});
  }

  Core& core;
  const VectorClass kind;
  const bool accumulates;

 private:
  void misaligned(uint32_t address, uint32_t alignment);
  [[noreturn]] void too_long(uint32_t bytes, uint64_t wanted);
};

// Calls run(repeat, first, size) for the active lanes, in runs that are contiguous in every operand; with ordinary
// strides one run has all lanes, counted from the first repeat.
template <class Run, class... Operands>
void for_side_by_side(const Extent& extent, Run run, const Operands&... operands) {
  if (extent.full() && (operands.contiguous(extent.lanes) && ...)) {
    if (extent.elements()) run(0, 0, static_cast<uint32_t>(extent.elements()));
    return;
  }
  const bool strided = ((operands.block_stride != 1) || ...);
  const uint32_t cut = strided ? std::min({operands.per_block()...}) : extent.lanes;
  for (uint32_t repeat = 0; repeat < extent.repeats; ++repeat)
    extent.for_runs(repeat, cut, [&](uint32_t first, uint32_t end) { run(repeat, first, end - first); });
}

// Calls f(dst, size, source...) for all lanes of the extent; the operands have been judged.
template <class F, class... Sources>
void for_operands(Core& core, const Extent& extent, F f, const Operand& dst, const Sources&... sources) {
  const auto run = [&](uint32_t repeat, uint32_t first, uint32_t size) __attribute__((noinline)) {
    // Sources first: write() marks its bytes as initialised.
    const auto pointers = std::make_tuple(core.read(sources.at(repeat, first), size * sources.size)...);
    uint8_t* const target = core.write(dst.at(repeat, first), size * dst.size);
    std::apply([&](auto... source) { f(target, size, source...); }, pointers);
  };
  for_side_by_side(extent, run, dst, sources...);
}

}  // namespace virtual_cann::api

#include "repeats_judge.h"
