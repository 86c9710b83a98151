// SPDX-License-Identifier: Apache-2.0
// Gather takes the elements at a tensor of byte offsets; GatherMask takes the elements whose bit is set. Of the
// headers' other instructions, two effects are modelled: the mask register's content afterwards, and S's wait for
// GatherMask's count.
#pragma once

#include "elementwise.h"

namespace virtual_cann::api {

// The offsets are contiguous, and so are the blocks of a repeat of dst.
struct GatherRepeats {
  MaskArgument mask;
  int64_t repeats;
  Field<uint16_t> dst_repeat;

  Extent extent(VectorCall& call, uint32_t lanes) const { return call.masked(lanes, mask, repeats); }
  void stride(VectorCall& call, Operand& dst) const { set_dst_strides(call, dst, Field<uint16_t>(1), dst_repeat); }
};

template <class T>
void gather(AscendC::Place place, const GatherRepeats& shape, const AscendC::LocalTensor<T>& dst,
            const AscendC::LocalTensor<T>& src, const AscendC::LocalTensor<uint32_t>& offsets, uint32_t base) {
  VectorCall call("Gather", place, VectorClass::gather);
  if constexpr (!Words::has<T>) {
    call.wrong_type();
  } else {
    constexpr uint32_t lanes = kRepeatBytes / sizeof(T);
    const Extent extent = shape.extent(call, lanes);
    Operand to = operand(dst);
    shape.stride(call, to);
    if (base % sizeof(T))
      call.core.violate(Rule::gather_offset, "a base of a multiple of " + text(sizeof(T)) + " bytes", text(base));
    const Operand from = operand(src), where{offsets.address(), offsets.bytes(), 4, 1, lanes * 4 / kBlockBytes};
    call.require_operand(to, extent);
    call.require_operand(where, extent);
    call.require_alignment(from);
    call.require_disjoint(Rule::gather_offset, to, extent, from.address, from.bytes);
    call.require_disjoint(Rule::gather_offset, to, extent, where.address, used_bytes(where, extent));
    for_operands(
        call.core, extent,
        [&](uint8_t* target, uint32_t size, const uint8_t* offset_bytes) {
          for (uint32_t i = 0; i < size; ++i) {
            uint32_t offset;
            std::memcpy(&offset, offset_bytes + i * sizeof(offset), sizeof(offset));
            const uint64_t at = uint64_t{base} + offset;
            if (offset % sizeof(T) || at + sizeof(T) > from.bytes)
              call.core.stop(Rule::gather_offset,
                             "a multiple of " + text(sizeof(T)) + " bytes, below src's " + text(from.bytes), text(at));
            std::memcpy(target + i * sizeof(T), call.core.read(from.address + static_cast<uint32_t>(at), sizeof(T)),
                        sizeof(T));
          }
        },
        to, where);
    call.work(extent.repeats);
  }
}

// Takes each lane of src for which selected(repeat, lane) is true: of all lanes of each repeat or, in counter mode, of
// `mask` lanes from each repeat's beginning.
template <class T, class Selected>
uint64_t gather_selected(VectorCall& call, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                         bool counter, uint32_t mask, const AscendC::GatherMaskParams& params, Selected selected) {
  constexpr uint32_t lanes = kRepeatBytes / sizeof(T);
  if (counter && mask == 0) call.core.violate(Rule::mask_limit, "a mask of at least 1 in counter mode", "0");
  const uint32_t wanted = counter ? mask : lanes;
  const auto repeats = static_cast<uint32_t>(params.repeatTimes.meant());
  call.require_range(Rule::repeat_limit, "a repeat count", params.repeatTimes.meant(), kMaxRepeats);
  Operand from = operand(src);
  set_strides(call, from, params.src0BlockStride, params.src0RepeatStride);
  const Operand to = operand(dst);
  call.require_alignment(to);
  call.require_alignment(from);
  if (repeats && wanted) call.require_length(from, from.offset(repeats - 1, wanted - 1) + sizeof(T));

  uint32_t taken = 0;
  for (uint32_t repeat = 0; repeat < repeats; ++repeat)
    for (uint32_t lane = 0; lane < wanted; ++lane) {
      if (!selected(repeat, lane)) continue;
      call.require_length(to, uint64_t{taken + 1} * sizeof(T));
      T value;
      std::memcpy(&value, call.core.read(from.at(repeat, lane), sizeof(T)), sizeof(T));
      std::memcpy(call.core.write(to.address + taken * sizeof(T), sizeof(T)), &value, sizeof(T));
      ++taken;
    }
  // In place is allowed: the page's sample does it.
  const uint32_t from_end = from.at(std::max(repeats, 1u) - 1, std::max(wanted, 1u) - 1) + from.size;
  if (to.address != from.address && to.address < from_end && from.address < to.address + taken * to.size)
    call.core.violate(Rule::overlap, "a dst that coincides with src or lies apart", "partly the same memory");
  call.work(uint64_t{repeats} * ((wanted + lanes - 1) / lanes));
  call.core.mask = {mask, 0, false};  // ends counter mode (page GatherMask); `mask` is 0 in normal mode
  call.core.stall(Pipe::S, Pipe::V);  // S reads the count from a special register
  return taken;
}

}  // namespace virtual_cann::api

namespace AscendC {

template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset,
            const uint32_t srcBaseAddr, const uint32_t count, Place place = Place::here()) {
  using namespace virtual_cann::api;
  constexpr uint32_t lanes = virtual_cann::kRepeatBytes / sizeof(T);
  // The headers keep the number of whole repeats in a byte, and process the rest by another instruction.
  const uint32_t repeats = count / lanes, rest = count % lanes;
  if (repeats) gather(place, {lanes, repeats, 8}, dst, src, srcOffset, srcBaseAddr);
  if (rest) gather(place, {rest, 1, 8}, dst[count - rest], src, srcOffset[count - rest], srcBaseAddr);
}

template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset,
            const uint32_t srcBaseAddr, virtual_cann::api::MaskArgument mask, Field<uint8_t> repeatTime,
            Field<uint16_t> dstRepStride, Place place = Place::here()) {
  const virtual_cann::api::GatherRepeats shape{mask, repeatTime.meant(), dstRepStride};
  virtual_cann::api::gather(place, shape, dst, src, srcOffset, srcBaseAddr);
}

// The bits are src1Pattern's, from the lowest on; each repeat's begin src1RepeatStride blocks after those before.
template <typename T, typename U>
void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<U>& src1Pattern,
                const bool reduceMode, const uint32_t mask, const GatherMaskParams& gatherMaskParams, uint64_t& rsvdCnt,
                Place place = Place::here()) {
  using namespace virtual_cann::api;
  VectorCall call("GatherMask", place, VectorClass::gather);
  if constexpr (!Words::has<T> || !std::is_unsigned_v<U> || sizeof(U) != sizeof(T)) {
    call.wrong_type();
  } else {
    Operand bits = operand(src1Pattern);
    set_strides(call, bits, Field<uint8_t>(1), gatherMaskParams.src1RepeatStride);
    call.require_alignment(bits);
    const auto selected = [&](uint32_t repeat, uint32_t lane) {
      const uint32_t at = repeat * bits.repeat_stride * virtual_cann::kBlockBytes + lane / 8;
      call.require_length(bits, at + 1);
      return *call.core.read(bits.address + at, 1) >> lane % 8 & 1;
    };
    rsvdCnt = gather_selected(call, dst, src0, reduceMode, mask, gatherMaskParams, selected);
  }
}

// Patterns 1 and 2 take even and odd lanes, 3 to 6 one lane of four, 7 all lanes.
template <typename T>
void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const uint8_t src1Pattern, const bool reduceMode,
                const uint32_t mask, const GatherMaskParams& gatherMaskParams, uint64_t& rsvdCnt,
                Place place = Place::here()) {
  using namespace virtual_cann::api;
  VectorCall call("GatherMask", place, VectorClass::gather);
  if constexpr (!Words::has<T>) {
    call.wrong_type();
  } else {
    if (src1Pattern < 1 || src1Pattern > 7)
      call.core.stop(virtual_cann::Rule::mask_limit, "a pattern of 1 to 7", text(src1Pattern));
    const auto selected = [&](uint32_t, uint32_t lane) {
      return src1Pattern <= 2 ? lane % 2 + 1 == src1Pattern : src1Pattern == 7 || lane % 4 + 3 == src1Pattern;
    };
    rsvdCnt = gather_selected(call, dst, src0, reduceMode, mask, gatherMaskParams, selected);
  }
}

}  // namespace AscendC
