// SPDX-License-Identifier: Apache-2.0
// Reductions of one instruction: over each repeat (ReduceRepeat; CANN 8 names it WholeReduce), over each block of 32
// bytes (ReduceDataBlock), over each pair of elements (ReducePairElem).
#pragma once

#include "reduce_repeats.h"

namespace virtual_cann::api {

using AscendC::ReduceOrder;

// Each `group` lanes of a repeat give `result` bytes; dstRepStride counts in `unit` bytes, dst begins at `alignment`.
struct Reduction {
  uint32_t group;
  uint32_t result;
  uint32_t unit;
  uint32_t alignment;
};

struct ReduceStrides {
  int64_t dst_repeat;
  int64_t src_block;
  int64_t src_repeat;
};

// Calls fold(lanes of the group, first active lane, target of the result).
template <bool set_mask, class T, class Fold>
void reduce(const char* api, AscendC::Place place, const Reduction& reduction, float neutral,
            const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, MaskArgument mask, int64_t repeats,
            const ReduceStrides& strides, Fold fold) {
  VectorCall call(api, place, VectorClass::reduce);
  if constexpr (!Floats::has<T>) {
    call.wrong_type();
  } else {
    constexpr uint32_t lanes = kRepeatBytes / sizeof(T);
    const Extent extent = set_mask ? call.masked(lanes, mask, repeats) : call.repeats(lanes, repeats);
    for (const int64_t stride : {strides.dst_repeat, strides.src_block, strides.src_repeat})
      call.require_range(Rule::stride_limit, "a stride", stride, UINT16_MAX);
    Operand from = operand(src);
    from.block_stride = static_cast<uint32_t>(strides.src_block);
    from.repeat_stride = static_cast<uint32_t>(strides.src_repeat);
    call.require_operand(from, extent);

    const Operand to = operand(dst);
    const uint32_t step = static_cast<uint32_t>(strides.dst_repeat) * reduction.unit;
    const auto groups_of = [&](uint32_t repeat) {
      return (extent.end_of(repeat) + reduction.group - 1) / reduction.group;
    };
    const uint32_t last = extent.repeats - 1;
    const uint64_t bytes = extent.repeats ? uint64_t{last} * step + groups_of(last) * reduction.result : 0;
    call.require_alignment(to, reduction.alignment);
    call.require_length(to, bytes);
    call.require_disjoint(Rule::overlap, from, extent, to.address, bytes);

    SourceRepeats<T> source(call.core, extent, from, neutral);
    const bool side_by_side = extent.full() && step == lanes / reduction.group * reduction.result;
    uint8_t* const results = side_by_side ? call.core.write(to.address, static_cast<uint32_t>(bytes)) : nullptr;
    for (uint32_t repeat = 0; repeat < extent.repeats; ++repeat) {
      const T* const values = source.lanes(repeat);
      for (uint32_t group = 0; group < groups_of(repeat); ++group) {
        const uint32_t begin = group * reduction.group, end = begin + reduction.group;
        const uint32_t first = extent.first_active(repeat, begin, end);
        if (first == end) continue;  // dst keeps what it has there
        const uint32_t offset = repeat * step + group * reduction.result;
        fold(values + begin, first - begin,
             results ? results + offset : call.core.write(to.address + offset, reduction.result));
      }
    }
    call.work(extent, nullptr, from);
  }
}

template <uint32_t group, class T>
void put_sum(const T* lanes, uint32_t, uint8_t* to) {
  const T sum = tree_sum<group>(lanes);
  std::memcpy(to, &sum, sizeof(sum));
}

template <bool greatest, uint32_t group, class T>
void put_extreme(const T* lanes, uint32_t first, uint8_t* to) {
  const T value = extreme_of<greatest>(lanes, first, group).value;
  std::memcpy(to, &value, sizeof(value));
}

template <bool set_mask, bool greatest, class T>
void whole_extreme(const char* api, AscendC::Place place, const AscendC::LocalTensor<T>& dst,
                   const AscendC::LocalTensor<T>& src, MaskArgument mask, int64_t repeats, const ReduceStrides& strides,
                   ReduceOrder order) {
  constexpr uint32_t size = sizeof(T), lanes = kRepeatBytes / size;
  const uint32_t bytes = order == ReduceOrder::ORDER_ONLY_VALUE   ? size
                         : order == ReduceOrder::ORDER_ONLY_INDEX ? 4
                                                                  : 2 * size;
  const auto put = [order](const T* values, uint32_t first, uint8_t* to) {
    const Extreme<T> found = extreme_of<greatest>(values, first, lanes);
    const T index = index_as_value<T>(found.lane);
    const T both[2] = {order == ReduceOrder::ORDER_INDEX_VALUE ? index : found.value,
                       order == ReduceOrder::ORDER_INDEX_VALUE ? found.value : index};
    if (order == ReduceOrder::ORDER_ONLY_INDEX)
      std::memcpy(to, &found.lane, sizeof(found.lane));
    else
      std::memcpy(to, both, order == ReduceOrder::ORDER_ONLY_VALUE ? size : 2 * size);
  };
  // ReduceRepeat lets a single value lie anywhere; 8.5's WholeReduceMax aligns every order as it does a pair.
  reduce<set_mask>(api, place, {lanes, bytes, bytes, 2 * size}, kNan, dst, src, mask, repeats, strides, put);
}

}  // namespace virtual_cann::api

#define VIRTUAL_CANN_WHOLE_REDUCE(Name, greatest)                                                             \
  template <typename T, bool isSetMask = true>                                                                \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, virtual_cann::api::MaskArgument mask,       \
            const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,                 \
            const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX,                   \
            Place place = Place::here()) {                                                                    \
    virtual_cann::api::whole_extreme<isSetMask, greatest>(#Name, place, dst, src, mask, repeatTime,           \
                                                          {dstRepStride, srcBlkStride, srcRepStride}, order); \
  }

// Groups' results are contiguous in dst; dstRepStride counts in the bytes that a full repeat gives.
#define VIRTUAL_CANN_GROUP_REDUCE(Name, group, alignment, neutral, put)                                   \
  template <typename T, bool isSetMask = true>                                                            \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,               \
            virtual_cann::api::MaskArgument mask, const int32_t dstRepStride, const int32_t srcBlkStride, \
            const int32_t srcRepStride, Place place = Place::here()) {                                    \
    using namespace virtual_cann::api;                                                                    \
    constexpr uint32_t size = sizeof(T);                                                                  \
    const Reduction reduction{group, size, kRepeatBytes / (group), alignment};                            \
    reduce<isSetMask>(#Name, place, reduction, neutral, dst, src, mask, repeatTime,                       \
                      {dstRepStride, srcBlkStride, srcRepStride}, put);                                   \
  }

namespace AscendC {

VIRTUAL_CANN_WHOLE_REDUCE(WholeReduceMax, true)
VIRTUAL_CANN_WHOLE_REDUCE(WholeReduceMin, false)

VIRTUAL_CANN_GROUP_REDUCE(BlockReduceSum, kBlockBytes / size, 8 * size, 0.0f, (put_sum<kBlockBytes / size, T>))
VIRTUAL_CANN_GROUP_REDUCE(BlockReduceMax, kBlockBytes / size, 8 * size, kNan,
                          (put_extreme<true, kBlockBytes / size, T>))
VIRTUAL_CANN_GROUP_REDUCE(BlockReduceMin, kBlockBytes / size, 8 * size, kNan,
                          (put_extreme<false, kBlockBytes / size, T>))
VIRTUAL_CANN_GROUP_REDUCE(PairReduceSum, 2, kBlockBytes, 0.0f, (put_sum<2, T>))

template <typename T, bool isSetMask = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, virtual_cann::api::MaskArgument mask,
                    const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                    const int32_t srcRepStride, Place place = Place::here()) {
  using namespace virtual_cann::api;
  constexpr uint32_t size = sizeof(T), lanes = kRepeatBytes / size;
  reduce<isSetMask>("WholeReduceSum", place, {lanes, size, size, size}, 0.0f, dst, src, mask, repeatTime,
                    {dstRepStride, srcBlkStride, srcRepStride}, put_sum<lanes, T>);
}

// dstBlkStride is ignored.
template <typename T, bool isSetMask = true>
void RepeatReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,
                     virtual_cann::api::MaskArgument mask, const int32_t, const int32_t srcBlkStride,
                     const int32_t dstRepStride, const int32_t srcRepStride, Place place = Place::here()) {
  WholeReduceSum<T, isSetMask>(dst, src, mask, repeatTime, dstRepStride, srcBlkStride, srcRepStride, place);
}

}  // namespace AscendC

#undef VIRTUAL_CANN_GROUP_REDUCE
#undef VIRTUAL_CANN_WHOLE_REDUCE
