// SPDX-License-Identifier: Apache-2.0
// DataCopyPad: lengths are in bytes. Blocks are filled up to 32 bytes on their way to UB, and not on their way to GM.
#pragma once

#include <algorithm>

#include "copy.h"

namespace virtual_cann::api {

constexpr uint32_t kMaxPadLength = 2097151;
constexpr uint32_t kMaxPaddingBytes = 32;

inline uint64_t whole_blocks(uint64_t bytes) { return (bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes; }

// The blocks that either generation of parameters describes.
template <class Params>
Blocks padded(DmaCall& call, const Params& params, uint32_t element) {
  call.require_field(Rule::pad_block, "blockCount", params.blockCount.meant(), kMaxCopyBlocks);
  if constexpr (std::is_same_v<Params, AscendC::DataCopyParams>) {
    call.require_field(Rule::pad_block, "blockLen", params.blockLen.meant(), UINT16_MAX);
    call.require_field(Rule::pad_block, "srcStride", params.srcStride.meant(), UINT16_MAX);
    call.require_field(Rule::pad_block, "dstStride", params.dstStride.meant(), UINT16_MAX);
  } else {
    call.require_field(Rule::pad_block, "blockLen", params.blockLen.meant(), kMaxPadLength);
    call.require_field(Rule::pad_block, "srcStride", params.srcStride.meant(), UINT32_MAX);
    call.require_field(Rule::pad_block, "dstStride", params.dstStride.meant(), UINT32_MAX);
  }
  const auto length = static_cast<uint32_t>(params.blockLen.meant());
  if (length % element)
    call.core.violate(Rule::pad_block, "a blockLen of whole elements of " + text(element) + " bytes", text(length));
  return {static_cast<uint32_t>(params.blockCount.meant()), length, 0, 0};
}

// The bytes that fill a block up to 32 bytes, including the padding on both sides. Without padding they repeat the
// block's first element, whatever isPad and paddingValue say. With padding all of them are paddingValue, or undefined
// if isPad is false (page DataCopyPad, GM to UB).
class Filler {
 public:
  template <class T>
  static Filler of(const AscendC::DataCopyPadExtParams<T>& padding) {
    if (padding.leftPadding.meant() == 0 && padding.rightPadding.meant() == 0) return Filler(Kind::first_element);
    Filler filler(padding.isPad ? Kind::value : Kind::undefined);
    std::memcpy(filler.element_, &padding.paddingValue, sizeof(T));
    return filler;
  }

  // Elements of 64 bits are copied as pairs of 32 bits (dav_c220, DataCopyPadGm2UBImpl), so the filler is a lower half.
  template <class T>
  void fill(Core& core, const uint8_t* block, uint32_t address, uint64_t bytes) const {
    if (bytes == 0) return;
    if (kind_ == Kind::undefined) return core.scribble(address, static_cast<uint32_t>(bytes));
    constexpr size_t kElement = std::min(sizeof(T), sizeof(uint32_t));
    const uint8_t* const from = kind_ == Kind::value ? element_ : block;
    uint8_t* const to = core.write(address, static_cast<uint32_t>(bytes));
    for (uint64_t at = 0; at < bytes; at += kElement) std::memcpy(to + at, from, kElement);
  }

 private:
  enum class Kind { first_element, value, undefined };

  explicit Filler(Kind kind) : kind_(kind) {}

  Kind kind_;
  uint8_t element_[sizeof(uint64_t)] = {};
};

template <class T, class Params>
void copy_in_padded(AscendC::Place place, const AscendC::LocalTensor<T>& dst, const AscendC::GlobalTensor<T>& src,
                    const Params& params, const AscendC::DataCopyPadExtParams<T>& padding) {
  DmaCall call(Pipe::MTE2, "DataCopyPad", place);
  const Blocks blocks = padded(call, params, sizeof(T));
  const uint64_t left = static_cast<uint64_t>(padding.leftPadding.meant()) * sizeof(T);
  const uint64_t right = static_cast<uint64_t>(padding.rightPadding.meant()) * sizeof(T);
  if (std::max(left, right) > kMaxPaddingBytes)
    call.core.violate(Rule::pad_padding, "at most 32 bytes on each side",
                      text(left) + " on the left, " + text(right) + " on the right");
  if constexpr (sizeof(T) == 8)
    if (padding.isPad && padding.paddingValue != T(0))
      call.core.violate(Rule::pad_padding, "a padding value of 0 for a type of 64 bits", text(padding.paddingValue));

  const uint64_t row = whole_blocks(left + blocks.length + right);
  const uint64_t ub_step = row + static_cast<uint64_t>(params.dstStride.meant()) * kBlockBytes;
  const uint64_t gm_step = blocks.length + static_cast<uint64_t>(params.srcStride.meant());
  call.require_ub(dst, Blocks::end(blocks.count, ub_step, row));
  src.require(call.core, Blocks::end(blocks.count, gm_step, blocks.length));
  if (!blocks.length) return;
  const Filler filler = Filler::of(padding);
  for (uint32_t i = 0; i < blocks.count; ++i) {
    const uint32_t begin = dst.address() + static_cast<uint32_t>(i * ub_step);
    const uint32_t middle = begin + static_cast<uint32_t>(left);
    const uint32_t end = middle + blocks.length;
    const uint8_t* const from =
        call.core.gm_read(reinterpret_cast<const uint8_t*>(src.pointer()) + i * gm_step, blocks.length);
    filler.fill<T>(call.core, from, begin, left);
    std::memcpy(call.core.write(middle, blocks.length), from, blocks.length);
    filler.fill<T>(call.core, from, end, begin + row - end);
  }
  if (blocks.count) call.core.transfer(uint64_t{blocks.count} * blocks.length, src.through_l2());
}

template <class T, class Params>
void copy_out_padded(AscendC::Place place, const AscendC::GlobalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                     const Params& params) {
  DmaCall call(Pipe::MTE3, "DataCopyPad", place);
  Blocks blocks = padded(call, params, sizeof(T));
  blocks.src_step = whole_blocks(blocks.length) + static_cast<uint64_t>(params.srcStride.meant()) * kBlockBytes;
  blocks.dst_step = blocks.length + static_cast<uint64_t>(params.dstStride.meant());
  copy_out(call, dst, src, blocks);
}

}  // namespace virtual_cann::api

namespace AscendC {

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& dataCopyParams,
                 const DataCopyPadExtParams<T>& padParams, Place place = Place::here()) {
  virtual_cann::api::copy_in_padded(place, dst, src, dataCopyParams, padParams);
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& dataCopyParams,
                 Place place = Place::here()) {
  virtual_cann::api::copy_out_padded(place, dst, src, dataCopyParams);
}

// paddingValue holds the bits of a T.
template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& dataCopyParams,
                 const DataCopyPadParams& padParams, Place place = Place::here()) {
  T value;
  std::memcpy(&value, &padParams.paddingValue, sizeof(T));
  const DataCopyPadExtParams<T> padding(padParams.isPad, padParams.leftPadding.meant(), padParams.rightPadding.meant(),
                                        value);
  virtual_cann::api::copy_in_padded(place, dst, src, dataCopyParams, padding);
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& dataCopyParams,
                 Place place = Place::here()) {
  virtual_cann::api::copy_out_padded(place, dst, src, dataCopyParams);
}

}  // namespace AscendC
