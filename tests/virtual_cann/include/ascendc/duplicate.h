// SPDX-License-Identifier: Apache-2.0
// Instructions that fill dst: Duplicate, Brcb.
#pragma once

#include "elementwise.h"

namespace virtual_cann::api {

// Strides of an instruction whose only operand is dst.
struct DstStrides {
  MaskArgument mask;
  int64_t repeats;
  Field<uint16_t> block;
  Field<uint8_t> repeat;

  template <bool set_mask>
  Extent extent(VectorCall& call, uint32_t lanes) const {
    return set_mask ? call.masked(lanes, mask, repeats) : call.repeats(lanes, repeats);
  }
  void stride(VectorCall& call, Operand& dst) const { set_dst_strides(call, dst, block, repeat); }
};

}  // namespace virtual_cann::api

namespace AscendC {

template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const int32_t& count, Place place = Place::here()) {
  using namespace virtual_cann::api;
  const auto f = [value = widen(scalarValue)] { return value; };
  elementwise<Words, isSetMask>({"Duplicate", place, VectorClass::simple}, f, Count{count}, dst);
}

template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, virtual_cann::api::MaskArgument mask,
               Field<uint8_t> repeatTime, Field<uint16_t> dstBlockStride, Field<uint8_t> dstRepeatStride,
               Place place = Place::here()) {
  using namespace virtual_cann::api;
  const auto f = [value = widen(scalarValue)] { return value; };
  const DstStrides shape{mask, repeatTime.meant(), dstBlockStride, dstRepeatStride};
  elementwise<Words, isSetMask>({"Duplicate", place, VectorClass::simple}, f, shape, dst);
}

// Each repeat spreads eight elements of src over eight blocks of dst. Afterwards the mask register is full.
template <typename T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, Field<uint8_t> repeatTime,
          const BrcbRepeatParams& repeatParams, Place place = Place::here()) {
  using namespace virtual_cann::api;
  VectorCall call("Brcb", place, VectorClass::simple);
  if constexpr (!Words::has<T>) {
    call.wrong_type();
  } else {
    const Extent extent = call.unmasked(kRepeatBytes / sizeof(T), repeatTime.meant());
    call.core.mask = kFullMask;
    Operand to = operand(dst);
    const Operand from = operand(src);
    set_dst_strides(call, to, repeatParams.dstBlkStride, repeatParams.dstRepStride);
    const uint64_t source_bytes = uint64_t{extent.repeats} * kBlocksPerRepeat * sizeof(T);
    call.require_operand(to, extent);
    call.require_alignment(from);
    call.require_length(from, source_bytes);
    call.require_disjoint(Rule::overlap, to, extent, from.address, source_bytes);
    for (uint32_t i = 0; i < extent.repeats * kBlocksPerRepeat; ++i) {
      T value;
      std::memcpy(&value, call.core.read(from.address + i * sizeof(T), sizeof(T)), sizeof(T));
      const uint32_t lane = i % kBlocksPerRepeat * to.per_block();
      const auto target = reinterpret_cast<T*>(call.core.write(to.at(i / kBlocksPerRepeat, lane), kBlockBytes));
      std::fill_n(target, to.per_block(), value);
    }
    call.work(extent, &to);
  }
}

}  // namespace AscendC
