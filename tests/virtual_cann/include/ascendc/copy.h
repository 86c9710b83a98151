// SPDX-License-Identifier: Apache-2.0
// DataCopy: by DMA between GM and UB, by the vector unit within UB.
#pragma once

#include <bitset>

#include "atomic.h"
#include "elementwise.h"

namespace virtual_cann::api {

// Blocks of `length` bytes; dst_step and src_step are the bytes from one start to the next.
struct Blocks {
  uint32_t count;
  uint32_t length;
  uint64_t dst_step;
  uint64_t src_step;

  static uint64_t end(uint32_t count, uint64_t step, uint64_t length) {
    return count ? (count - 1) * step + length : 0;
  }
};

class DmaCall {
 public:
  DmaCall(Pipe pipe, const char* api, Place place) : core(Core::current()) { core.issue(pipe, api, place); }

  template <class T>
  void require_ub(const AscendC::LocalTensor<T>& tensor, uint64_t bytes) {
    if (tensor.address() % kBlockBytes)
      core.violate(Rule::ub_alignment, "a UB address that is a multiple of 32 bytes", text(tensor.address()));
    if (bytes > tensor.bytes())
      core.stop(Rule::ub_bounds, "at most the " + text(tensor.bytes()) + " bytes of the tensor", text(bytes));
  }
  // Only for DataCopy: DataCopyPad takes any byte address of GM.
  template <class T>
  void require_whole_elements(const AscendC::GlobalTensor<T>& tensor) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.pointer());
    if (address % sizeof(T))
      core.violate(Rule::gm_alignment, "a GM address that is a multiple of " + text(sizeof(T)) + " bytes",
                   text(address) + ": DataCopyPad takes any");
  }
  void require_field(Rule rule, const char* what, int64_t value, int64_t limit, int64_t least = 0) {
    if (value < least || value > limit)
      core.violate(rule, std::string(what) + " of " + text(least) + " to " + text(limit), text(value));
  }
  // Within UB. The page forbids overlap.
  struct Side {
    uint64_t address;
    uint64_t step;
  };
  void require_apart(Side dst, Side src, Blocks blocks) {
    const auto end = [&](Side side) { return side.address + Blocks::end(blocks.count, side.step, blocks.length); };
    if (end(dst) <= src.address || end(src) <= dst.address) return;
    std::bitset<kUbBytes / kBlockBytes> written;
    for (uint32_t i = 0; i < blocks.count * (blocks.length / kBlockBytes); ++i) written.set(block(dst, blocks, i));
    for (uint32_t i = 0; i < blocks.count * (blocks.length / kBlockBytes); ++i)
      if (written[block(src, blocks, i)]) return core.violate(Rule::overlap, "a dst apart from src", "the same memory");
  }

  Core& core;

 private:
  static size_t block(Side side, Blocks blocks, uint32_t i) {
    const uint32_t each = blocks.length / kBlockBytes;
    return side.address / kBlockBytes + i / each * (side.step / kBlockBytes) + i % each;
  }
};

template <class T>
void copy_in(DmaCall& call, const AscendC::LocalTensor<T>& dst, const AscendC::GlobalTensor<T>& src, Blocks blocks) {
  call.require_ub(dst, Blocks::end(blocks.count, blocks.dst_step, blocks.length));
  src.require(call.core, Blocks::end(blocks.count, blocks.src_step, blocks.length));
  if (!blocks.count || !blocks.length) return;
  const auto gm = reinterpret_cast<const uint8_t*>(src.pointer());
  for (uint32_t i = 0; i < blocks.count; ++i) {
    const uint8_t* const from = call.core.gm_read(gm + i * blocks.src_step, blocks.length);
    std::memcpy(call.core.write(dst.address() + static_cast<uint32_t>(i * blocks.dst_step), blocks.length), from,
                blocks.length);
  }
  call.core.transfer(uint64_t{blocks.count} * blocks.length, src.through_l2());
}

template <class T>
void copy_out(DmaCall& call, const AscendC::GlobalTensor<T>& dst, const AscendC::LocalTensor<T>& src, Blocks blocks) {
  call.require_ub(src, Blocks::end(blocks.count, blocks.src_step, blocks.length));
  dst.require(call.core, Blocks::end(blocks.count, blocks.dst_step, blocks.length));
  if (!blocks.count || !blocks.length) return;
  const auto gm = reinterpret_cast<uint8_t*>(dst.pointer());
  for (uint32_t i = 0; i < blocks.count; ++i) {
    const uint8_t* const from =
        call.core.read(src.address() + static_cast<uint32_t>(i * blocks.src_step), blocks.length);
    store_to_gm<T>(call.core, call.core.gm_write(gm + i * blocks.dst_step, blocks.length), from, blocks.length);
  }
  call.core.transfer(uint64_t{blocks.count} * blocks.length, dst.through_l2());
}

// The hardware would move whole blocks only; after the report, this copies all bytes that were asked for.
template <class T>
Blocks one_block(DmaCall& call, uint32_t count) {
  const uint64_t bytes = uint64_t{count} * sizeof(T);
  if (bytes % kBlockBytes || !bytes)
    call.core.violate(Rule::copy_length, "a multiple of 32 bytes, and not 0",
                      text(count) + " elements, " + text(bytes) + " bytes: DataCopyPad moves what is not whole blocks");
  return {1, static_cast<uint32_t>(bytes), 0, 0};
}

constexpr int64_t kMaxCopyBlocks = 4095;

// The newer pages treat 0 blocks as no copy, the older ones forbid it ("basic data copies" of 8.5.0).
inline Blocks gapped(DmaCall& call, const AscendC::DataCopyParams& params) {
  call.require_field(Rule::copy_length, "blockCount", params.blockCount.meant(), kMaxCopyBlocks, 1);
  call.require_field(Rule::copy_length, "blockLen", params.blockLen.meant(), UINT16_MAX, 1);
  call.require_field(Rule::stride_limit, "srcGap", params.srcGap.meant(), UINT16_MAX);
  call.require_field(Rule::stride_limit, "dstGap", params.dstGap.meant(), UINT16_MAX);
  const auto step = [&](Field<uint16_t> gap) {
    return static_cast<uint64_t>(params.blockLen.meant() + gap.meant()) * kBlockBytes;
  };
  return {static_cast<uint32_t>(params.blockCount.meant()),
          static_cast<uint32_t>(params.blockLen.meant()) * kBlockBytes, step(params.dstGap), step(params.srcGap)};
}

}  // namespace virtual_cann::api

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const uint32_t count,
              Place place = Place::here()) {
  using namespace virtual_cann::api;
  DmaCall call(Pipe::MTE2, "DataCopy", place);
  call.require_whole_elements(src);
  copy_in(call, dst, src, one_block<T>(call, count));
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count,
              Place place = Place::here()) {
  using namespace virtual_cann::api;
  DmaCall call(Pipe::MTE3, "DataCopy", place);
  call.require_whole_elements(dst);
  copy_out(call, dst, src, one_block<T>(call, count));
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& repeatParams,
              Place place = Place::here()) {
  using namespace virtual_cann::api;
  DmaCall call(Pipe::MTE2, "DataCopy", place);
  call.require_whole_elements(src);
  copy_in(call, dst, src, gapped(call, repeatParams));
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& repeatParams,
              Place place = Place::here()) {
  using namespace virtual_cann::api;
  DmaCall call(Pipe::MTE3, "DataCopy", place);
  call.require_whole_elements(dst);
  copy_out(call, dst, src, gapped(call, repeatParams));
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& repeatParams,
              Place place = Place::here()) {
  using namespace virtual_cann::api;
  DmaCall call(Pipe::V, "DataCopy", place);
  const Blocks blocks = gapped(call, repeatParams);
  call.require_ub(dst, Blocks::end(blocks.count, blocks.dst_step, blocks.length));
  call.require_ub(src, Blocks::end(blocks.count, blocks.src_step, blocks.length));
  if (!blocks.count || !blocks.length) return;
  call.require_apart({dst.address(), blocks.dst_step}, {src.address(), blocks.src_step}, blocks);
  for (uint32_t i = 0; i < blocks.count; ++i) {
    const uint32_t to = dst.address() + static_cast<uint32_t>(i * blocks.dst_step);
    const uint8_t* const from =
        call.core.read(src.address() + static_cast<uint32_t>(i * blocks.src_step), blocks.length);
    std::memmove(call.core.write(to, blocks.length), from, blocks.length);
  }
  call.core.vector_work(VectorClass::copy, (uint64_t{blocks.count} * blocks.length + kRepeatBytes - 1) / kRepeatBytes);
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count, Place place = Place::here()) {
  using namespace virtual_cann::api;
  const uint64_t bytes = uint64_t{count} * sizeof(T);
  if (bytes % kBlockBytes) {
    DmaCall call(Pipe::V, "DataCopy", place);
    one_block<T>(call, count);
  }
  DataCopy(dst, src, DataCopyParams(1, (bytes + kBlockBytes - 1) / kBlockBytes, 0, 0), place);
}

}  // namespace AscendC
