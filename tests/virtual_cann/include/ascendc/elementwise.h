// SPDX-License-Identifier: Apache-2.0
// Instructions that compute each lane of dst from the same lane of the sources. To add such an API, add a row to
// vector_unary.h, vector_binary.h or vector_scalar.h.
#pragma once

#include "repeats.h"

namespace virtual_cann::api {

// The element types that A2 has an instruction for.
template <class... Members>
struct Types {
  template <class T, class... Others>
  static constexpr bool has = (std::is_same_v<T, Members> || ...) && (std::is_same_v<T, Others> && ...);
};
using Floats = Types<half, float>;
using Numbers = Types<int16_t, half, int32_t, float>;
using Bits16 = Types<int16_t, uint16_t>;
using Integers = Types<int16_t, uint16_t, int32_t, uint32_t>;
using Words = Types<int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>;

// The count form: the first `count` elements.
struct Count {
  int64_t count;

  template <bool set_mask>
  Extent extent(VectorCall& call, uint32_t lanes) const {
    return set_mask ? call.counted(lanes, count) : call.repeats(lanes, 1);
  }
  template <class... Operands>
  void stride(VectorCall&, Operands&...) const {}
};

template <class Block, class Repeat>
void set_strides(VectorCall& call, Operand& operand, Field<Block> block, Field<Repeat> repeat) {
  call.require_range(Rule::stride_limit, "a block stride", block.meant(), static_cast<Block>(-1));
  call.require_range(Rule::stride_limit, "a repeat stride", repeat.meant(), static_cast<Repeat>(-1));
  operand.block_stride = static_cast<uint32_t>(block.meant());
  operand.repeat_stride = static_cast<uint32_t>(repeat.meant());
}

// Strides of dst. The page 高维切分 does not say what a block stride of 0 does to dst, so it is a violation.
template <class Block, class Repeat>
void set_dst_strides(VectorCall& call, Operand& operand, Field<Block> block, Field<Repeat> repeat) {
  set_strides(call, operand, block, repeat);
  if (block.meant() == 0)
    call.core.violate(Rule::stride_limit, "a block stride of dst of at least 1",
                      "0: all blocks of a repeat would coincide");
}

// The form with repeats, under a mask.
template <class Strides>
struct Repeated {
  MaskArgument mask;
  int64_t repeats;
  const Strides& strides;

  template <bool set_mask>
  Extent extent(VectorCall& call, uint32_t lanes) const {
    return set_mask ? call.masked(lanes, mask, repeats) : call.repeats(lanes, repeats);
  }
  void stride(VectorCall& call, Operand& dst, Operand& src) const {
    set_dst_strides(call, dst, strides.dstBlkStride, strides.dstRepStride);
    set_strides(call, src, strides.srcBlkStride, strides.srcRepStride);
  }
  void stride(VectorCall& call, Operand& dst, Operand& src0, Operand& src1) const {
    if constexpr (std::is_same_v<Strides, AscendC::BinaryRepeatParams>) {
      set_dst_strides(call, dst, strides.dstBlkStride, strides.dstRepStride);
      set_strides(call, src0, strides.src0BlkStride, strides.src0RepStride);
      set_strides(call, src1, strides.src1BlkStride, strides.src1RepStride);
    } else {  // Axpy: the first source is dst
      stride(call, dst, src1);
      src0 = dst;
    }
  }
};

// f gets and returns lanes in the type that the instruction computes in: see widen() and narrow() of half.h.
template <class D, class F, class... S>
void compute_lanes(F f, uint32_t size, D* dst, const S*... src) {
  for_lanes(size, [=](uint32_t i) { dst[i] = narrow<D>(f(widen(src[i])...)); });
}

template <class D, class... S, class F, size_t... i>
void compute(VectorCall& call, const Extent& extent, F f, const Operand* dst_and_sources, std::index_sequence<i...>) {
  const auto run = [f](uint8_t* to, uint32_t size, auto... from) {
    compute_lanes(f, size, reinterpret_cast<D*>(to), reinterpret_cast<const S*>(from)...);
  };
  for_operands(call.core, extent, run, dst_and_sources[0], dst_and_sources[i + 1]...);
  call.work(extent, dst_and_sources, dst_and_sources[i + 1]...);
}

template <class Shape, size_t... i>
void stride_operands(VectorCall& call, const Shape& shape, Operand* operands, std::index_sequence<i...>) {
  shape.stride(call, operands[i]...);
}

template <class Supported, bool set_mask, class F, class Shape, class D, class... S>
void elementwise(VectorCall call, F f, const Shape& shape, const AscendC::LocalTensor<D>& dst,
                 const AscendC::LocalTensor<S>&... src) {
  if constexpr (!Supported::template has<D, S...>) {
    call.wrong_type();
  } else {
    constexpr uint32_t widest = std::max({sizeof(D), sizeof(S)...});
    constexpr size_t sources = sizeof...(S);
    const Extent extent = shape.template extent<set_mask>(call, kRepeatBytes / widest);
    Operand operands[] = {operand(dst, widest), operand(src, widest)...};
    stride_operands(call, shape, operands, std::make_index_sequence<1 + sources>());
    for (size_t i = 0; i <= sources; ++i) {
      call.require_operand(operands[i], extent);
      if (i > 0) call.require_apart(operands[0], operands[i], extent, i == 2);
    }
    compute<D, S...>(call, extent, f, operands, std::make_index_sequence<sources>());
  }
}

}  // namespace virtual_cann::api
