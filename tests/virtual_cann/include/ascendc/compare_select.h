// SPDX-License-Identifier: Apache-2.0
// Compare writes a bit for each element; Select takes one of two values by such a bit. The bits fill a byte from the
// lowest on, and continue from repeat to repeat. Masks have no effect in Compare. The real headers wait inside Select,
// which no page promises: here that costs time, and orders nothing.
#pragma once

#include <vector>

#include "elementwise.h"

namespace virtual_cann::api {

using AscendC::CMPMODE;
using AscendC::SELMODE;

template <class T>
bool compares(CMPMODE mode, T a, T b) {
  switch (mode) {
    case CMPMODE::LT:
      return a < b;
    case CMPMODE::GT:
      return a > b;
    case CMPMODE::EQ:
      return a == b;
    case CMPMODE::LE:
      return a <= b;
    case CMPMODE::GE:
      return a >= b;
    default:
      return a != b;
  }
}

using BitBytes = Types<uint8_t, int8_t>;

// Calls part(first element, repeats) for each instruction that the headers issue in the count form: 252 repeats at a
// time, which give a multiple of 32 bytes of bits for every type. The last instruction is issued even with 0 repeats.
template <class T, class Part>
void for_whole_repeats(uint32_t count, Part part) {
  constexpr uint32_t lanes = kRepeatBytes / sizeof(T), most = 252;
  uint32_t done = 0;
  for (; count / lanes - done >= most; done += most) part(done * lanes, most);
  part(done * lanes, count / lanes - done);
  if (count % lanes)
    Core::current().violate(Rule::compare_length, "whole repeats of " + text(lanes) + " elements", text(count));
}

template <class Strides>
struct WholeRepeats {
  int64_t repeats;
  const Strides& strides;

  Extent extent(VectorCall& call, uint32_t lanes) const { return call.unmasked(lanes, repeats); }
  template <class... Operands>
  void stride(VectorCall& call, Operands&... operands) const {
    Repeated<Strides>{0, repeats, strides}.stride(call, operands...);
  }
};

// right(core, repeat, first, size) reads the values that src0 is compared with; the function it returns gives the i-th.
template <class Bytes, class Shape, class T, class U, class Right, class... Operands>
void compare(VectorCall call, CMPMODE mode, const Shape& shape, const AscendC::LocalTensor<U>& dst,
             const AscendC::LocalTensor<T>& src0, Right right, Operands&... right_operand) {
  if constexpr (!Types<half, float, int32_t>::has<T> || !Bytes::template has<U>) {
    call.wrong_type();
  } else {
    if (std::is_same_v<T, int32_t> && mode != CMPMODE::EQ)
      call.core.stop(Rule::type, "CMPMODE::EQ: the only one for int32_t", text(static_cast<int>(mode)));
    const Extent extent = shape.extent(call, kRepeatBytes / sizeof(T));
    Operand to = operand(dst), left = operand(src0);
    shape.stride(call, to, left, right_operand...);
    const auto bytes = static_cast<uint32_t>(extent.elements() / 8);
    const uint32_t blocks = (bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
    call.require_alignment(to);
    call.require_length(to, blocks);
    call.require_operand(left, extent);
    (call.require_operand(right_operand, extent), ...);
    call.require_disjoint(Rule::overlap, left, extent, to.address, blocks);
    (call.require_disjoint(Rule::overlap, right_operand, extent, to.address, blocks), ...);

    std::vector<uint8_t> bits(bytes);
    const auto run = [&](uint32_t repeat, uint32_t first, uint32_t size) {
      const auto a = reinterpret_cast<const T*>(call.core.read(left.at(repeat, first), size * sizeof(T)));
      const auto b = right(call.core, repeat, first, size);
      for (uint32_t i = 0, bit = repeat * extent.lanes + first; i < size; ++i, ++bit)
        bits[bit / 8] |= static_cast<uint8_t>(compares(mode, widen(a[i]), b(i)) << bit % 8);
    };
    for_side_by_side(extent, run, left, right_operand...);
    std::copy(bits.begin(), bits.end(), call.core.write(to.address, bytes));
    call.core.scribble(to.address + bytes, blocks - bytes);  // no page says that the rest of the block is kept
    call.work(extent, nullptr, left, right_operand...);
  }
}

template <class Shape, class T, class U>
void compare_tensors(AscendC::Place place, CMPMODE mode, const Shape& shape, const AscendC::LocalTensor<U>& dst,
                     const AscendC::LocalTensor<T>& src0, const AscendC::LocalTensor<T>& src1) {
  Operand operand1 = operand(src1);
  const auto right = [&](Core& core, uint32_t repeat, uint32_t first, uint32_t size) {
    const auto values = reinterpret_cast<const T*>(core.read(operand1.at(repeat, first), size * sizeof(T)));
    return [values](uint32_t i) { return widen(values[i]); };
  };
  compare<BitBytes>(VectorCall("Compare", place, VectorClass::compare), mode, shape, dst, src0, right, operand1);
}

// dst is uint8_t only (page Compares).
template <class Shape, class T, class U>
void compare_scalar(const char* api, AscendC::Place place, CMPMODE mode, const Shape& shape,
                    const AscendC::LocalTensor<U>& dst, const AscendC::LocalTensor<T>& src0, T scalar) {
  const auto right = [value = widen(scalar)](Core&, uint32_t, uint32_t, uint32_t) {
    return [value](uint32_t) { return value; };
  };
  compare<Types<uint8_t>>(VectorCall(api, place, VectorClass::compare), mode, shape, dst, src0, right);
}

// The instructions that the headers issue before Select: they put the scalar, or the address of the bits, into their 8
// KiB at the end of UB, load a register from there, and wait after each (kernel_operator_vec_cmpsel_impl.h). In mode 0
// the register is loaded with the bits themselves.
inline void prepare_select(Core& core, AscendC::Place place, SELMODE mode) {
  for (int instructions = mode == SELMODE::VSEL_CMPMASK_SPR ? 1 : 2; instructions > 0; --instructions) {
    core.issue(Pipe::V, "Select", place);
    core.vector_work(VectorClass::simple, 1);
    core.stall(Pipe::V, Pipe::V);
  }
}

template <bool tensor, class Shape, class T, class U>
void select(AscendC::Place place, SELMODE mode, const Shape& shape, const AscendC::LocalTensor<T>& dst,
            const AscendC::LocalTensor<U>& mask, const AscendC::LocalTensor<T>& src0,
            const AscendC::LocalTensor<T>& src1, T scalar) {
  prepare_select(Core::current(), place, mode);
  VectorCall call("Select", place, VectorClass::select);
  if constexpr (!Floats::has<T> || !Types<uint8_t, uint16_t, uint32_t, uint64_t>::has<U>) {
    call.wrong_type();
  } else {
    if (tensor == (mode == SELMODE::VSEL_TENSOR_SCALAR_MODE))
      call.core.violate(Rule::select_mode,
                        tensor ? "VSEL_CMPMASK_SPR or VSEL_TENSOR_TENSOR_MODE, with two tensors"
                               : "VSEL_TENSOR_SCALAR_MODE, with a scalar",
                        "SELMODE " + text(static_cast<int>(mode)));
    const Extent extent = shape.template extent<true>(call, kRepeatBytes / sizeof(T));
    Operand to = operand(dst), one = operand(src0), zero = tensor ? operand(src1) : one;
    shape.stride(call, to, one, zero);
    if (!tensor) zero = one;
    for (const Operand* each : {&to, &one, &zero}) {
      call.require_operand(*each, extent);
      if (each != &to) call.require_apart(to, *each, extent);
    }
    // In mode 0, all repeats use the bits of the first one.
    const bool same_bits = mode == SELMODE::VSEL_CMPMASK_SPR;
    const Operand bits_operand = operand(mask);
    const uint64_t used =
        same_bits ? extent.lanes : std::min<uint64_t>(extent.elements(), extent.lanes * extent.repeats);
    const auto bytes = static_cast<uint32_t>((used + 7) / 8);
    call.require_alignment(bits_operand);
    call.require_length(bits_operand, bytes);
    call.require_disjoint(Rule::overlap, to, extent, bits_operand.address, bytes);
    if (!extent.repeats) return;
    const uint8_t* const bits = call.core.read(bits_operand.address, bytes);
    const auto run = [&](uint32_t repeat, uint32_t first, uint32_t size) {
      const auto ones = reinterpret_cast<const T*>(call.core.read(one.at(repeat, first), size * sizeof(T)));
      const auto zeros =
          tensor ? reinterpret_cast<const T*>(call.core.read(zero.at(repeat, first), size * sizeof(T))) : nullptr;
      const auto target = reinterpret_cast<T*>(call.core.write(to.at(repeat, first), size * sizeof(T)));
      for (uint32_t i = 0; i < size; ++i) {
        const uint32_t lane = repeat * extent.lanes + first + i;
        const uint32_t bit = same_bits ? lane % extent.lanes : lane;
        target[i] = bits[bit / 8] >> bit % 8 & 1 ? ones[i] : tensor ? zeros[i] : scalar;
      }
    };
    for_side_by_side(extent, run, to, one, zero);
    call.work(extent, &to, one, zero);
  }
}

}  // namespace virtual_cann::api

namespace AscendC {

template <typename T, typename U>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
             uint32_t count, Place place = Place::here()) {
  using namespace virtual_cann::api;
  for_whole_repeats<T>(count, [&](uint32_t first, uint32_t repeats) {
    const BinaryRepeatParams side_by_side;
    const WholeRepeats<BinaryRepeatParams> shape{repeats, side_by_side};
    compare_tensors(place, cmpMode, shape, dst[first / 8], src0[first], src1[first]);
  });
}

template <typename T, typename U, bool isSetMask = true>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
             virtual_cann::api::MaskArgument, Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams,
             Place place = Place::here()) {
  const virtual_cann::api::WholeRepeats<BinaryRepeatParams> shape{repeatTime.meant(), repeatParams};
  virtual_cann::api::compare_tensors(place, cmpMode, shape, dst, src0, src1);
}

// CANN 8's name for Compares is CompareScalar.
#define VIRTUAL_CANN_COMPARE_SCALAR(Name)                                                                      \
  template <typename T, typename U>                                                                            \
  void Name(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode,        \
            uint32_t count, Place place = Place::here()) {                                                     \
    using namespace virtual_cann::api;                                                                         \
    for_whole_repeats<T>(count, [&](uint32_t first, uint32_t repeats) {                                        \
      const UnaryRepeatParams side_by_side;                                                                    \
      const WholeRepeats<UnaryRepeatParams> shape{repeats, side_by_side};                                      \
      compare_scalar(#Name, place, cmpMode, shape, dst[first / 8], src0[first], src1Scalar);                   \
    });                                                                                                        \
  }                                                                                                            \
  template <typename T, typename U, bool isSetMask = true>                                                     \
  void Name(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode,        \
            virtual_cann::api::MaskArgument, Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams, \
            Place place = Place::here()) {                                                                     \
    const virtual_cann::api::WholeRepeats<UnaryRepeatParams> shape{repeatTime.meant(), repeatParams};          \
    virtual_cann::api::compare_scalar(#Name, place, cmpMode, shape, dst, src0, src1Scalar);                    \
  }

VIRTUAL_CANN_COMPARE_SCALAR(CompareScalar)
VIRTUAL_CANN_COMPARE_SCALAR(Compares)

#undef VIRTUAL_CANN_COMPARE_SCALAR

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE selMode, uint32_t count, Place place = Place::here()) {
  virtual_cann::api::select<true>(place, selMode, virtual_cann::api::Count{count}, dst, selMask, src0, src1, T());
}

template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE selMode, virtual_cann::api::MaskArgument mask,
            Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams, Place place = Place::here()) {
  const virtual_cann::api::Repeated<BinaryRepeatParams> shape{mask, repeatTime.meant(), repeatParams};
  virtual_cann::api::select<true>(place, selMode, shape, dst, selMask, src0, src1, T());
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
            SELMODE selMode, uint32_t count, Place place = Place::here()) {
  virtual_cann::api::select<false>(place, selMode, virtual_cann::api::Count{count}, dst, selMask, src0, src0, src1);
}

template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
            SELMODE selMode, virtual_cann::api::MaskArgument mask, Field<uint8_t> repeatTime,
            const BinaryRepeatParams& repeatParams, Place place = Place::here()) {
  const virtual_cann::api::Repeated<BinaryRepeatParams> shape{mask, repeatTime.meant(), repeatParams};
  virtual_cann::api::select<false>(place, selMode, shape, dst, selMask, src0, src0, src1);
}

}  // namespace AscendC
