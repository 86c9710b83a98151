// SPDX-License-Identifier: Apache-2.0
// Enumerations and parameter structs.
#pragma once

#include <cstdint>

#include "half.h"
#include "machine/hardware.h"
#include "machine/report.h"

#define GM_ADDR __gm__ uint8_t*

namespace virtual_cann::api {

// An argument that the hardware keeps in a field of type T. The real headers truncate it silently; a Field also keeps
// the value that was meant, so that the instruction can be judged.
template <class T>
class Field {
 public:
  constexpr Field() = default;
  template <class Integer>
  constexpr Field(Integer value) : meant_(static_cast<int64_t>(value)) {}

  constexpr operator T() const { return static_cast<T>(meant_); }
  constexpr int64_t meant() const { return meant_; }
  constexpr bool fits() const { return meant_ == static_cast<int64_t>(static_cast<T>(meant_)); }

 private:
  int64_t meant_ = 0;
};

}  // namespace virtual_cann::api

namespace AscendC {

using virtual_cann::Place;
using virtual_cann::api::Field;

enum class TPosition : uint8_t { GM, A1, A2, B1, B2, C1, C2, CO1, CO2, VECIN, VECOUT, VECCALC, LCM };
using QuePosition = TPosition;

enum class RoundMode : uint8_t {
  CAST_NONE,
  CAST_RINT,
  CAST_FLOOR,
  CAST_CEIL,
  CAST_ROUND,
  CAST_TRUNC,
  CAST_ODD,
};
enum class CMPMODE : uint8_t { LT, GT, EQ, LE, GE, NE };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };
enum class ReduceOrder : uint8_t { ORDER_VALUE_INDEX, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };
enum class MaskMode : uint8_t { NORMAL, COUNTER };
enum class CacheMode { CACHE_MODE_DISABLE, CACHE_MODE_NORMAL, CACHE_MODE_LAST, CACHE_MODE_PERSISTENT };
enum class CacheRwMode { READ = 1, WRITE = 2, RW = 3 };
enum class CacheLine : uint64_t { SINGLE_CACHE_LINE, ENTIRE_DATA_CACHE };
enum class DcciDst : uint64_t { CACHELINE_ALL, CACHELINE_UB, CACHELINE_OUT, CACHELINE_ATOMIC };

// In blocks of 32 bytes; in DataCopyPad, the length and the gap on the side of GM are in bytes.
struct DataCopyParams {
  DataCopyParams() {}
  DataCopyParams(Field<uint16_t> count, Field<uint16_t> length, Field<uint16_t> source_gap, Field<uint16_t> gap)
      : blockCount(count), blockLen(length), srcStride(source_gap), dstStride(gap) {}

  Field<uint16_t> blockCount = 1;
  Field<uint16_t> blockLen = 0;
  union {
    Field<uint16_t> srcGap;
    Field<uint16_t> srcStride = 0;
  };
  union {
    Field<uint16_t> dstGap;
    Field<uint16_t> dstStride = 0;
  };
};

// The length is in bytes; a gap is in bytes on the side of GM, in blocks on the side of UB.
struct DataCopyExtParams {
  DataCopyExtParams() {}
  DataCopyExtParams(Field<uint16_t> count, Field<uint32_t> length, Field<uint32_t> source_gap, Field<uint32_t> gap,
                    uint32_t reserved)
      : blockCount(count), blockLen(length), srcStride(source_gap), dstStride(gap), rsv(reserved) {}

  Field<uint16_t> blockCount = 1;
  Field<uint32_t> blockLen = 0;
  Field<uint32_t> srcStride = 0;
  Field<uint32_t> dstStride = 0;
  uint32_t rsv = 0;
};

// Padding, in elements.
template <class T>
struct DataCopyPadExtParams {
  DataCopyPadExtParams() {}
  DataCopyPadExtParams(bool pad, Field<uint8_t> left, Field<uint8_t> right, T value)
      : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}

  bool isPad = false;
  Field<uint8_t> leftPadding = 0;
  Field<uint8_t> rightPadding = 0;
  T paddingValue = 0;
};

struct DataCopyPadParams {
  DataCopyPadParams() {}
  DataCopyPadParams(bool pad, Field<uint8_t> left, Field<uint8_t> right, uint64_t value)
      : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}

  bool isPad = false;
  Field<uint8_t> leftPadding = 0;
  Field<uint8_t> rightPadding = 0;
  uint64_t paddingValue = 0;
};

// Strides of vector operands, in blocks: from block to block within a repeat, and from repeat to repeat.
struct UnaryRepeatParams {
  UnaryRepeatParams() {}
  UnaryRepeatParams(Field<uint16_t> dst_block, Field<uint16_t> src_block, Field<uint8_t> dst_repeat,
                    Field<uint8_t> src_repeat)
      : dstBlkStride(dst_block), srcBlkStride(src_block), dstRepStride(dst_repeat), srcRepStride(src_repeat) {}

  Field<uint16_t> dstBlkStride = 1;
  Field<uint16_t> srcBlkStride = 1;
  Field<uint8_t> dstRepStride = 8;
  Field<uint8_t> srcRepStride = 8;
};

struct BinaryRepeatParams {
  BinaryRepeatParams() {}
  BinaryRepeatParams(Field<uint8_t> dst_block, Field<uint8_t> src0_block, Field<uint8_t> src1_block,
                     Field<uint8_t> dst_repeat, Field<uint8_t> src0_repeat, Field<uint8_t> src1_repeat)
      : dstBlkStride(dst_block),
        src0BlkStride(src0_block),
        src1BlkStride(src1_block),
        dstRepStride(dst_repeat),
        src0RepStride(src0_repeat),
        src1RepStride(src1_repeat) {}

  Field<uint8_t> dstBlkStride = 1;
  Field<uint8_t> src0BlkStride = 1;
  Field<uint8_t> src1BlkStride = 1;
  Field<uint8_t> dstRepStride = 8;
  Field<uint8_t> src0RepStride = 8;
  Field<uint8_t> src1RepStride = 8;
};

struct CopyRepeatParams {
  CopyRepeatParams() {}
  CopyRepeatParams(Field<uint16_t> dst_block, Field<uint16_t> src_block, Field<uint16_t> dst_repeat,
                   Field<uint16_t> src_repeat)
      : dstStride(dst_block), srcStride(src_block), dstRepeatSize(dst_repeat), srcRepeatSize(src_repeat) {}

  Field<uint16_t> dstStride = 0;
  Field<uint16_t> srcStride = 0;
  Field<uint16_t> dstRepeatSize = 8;
  Field<uint16_t> srcRepeatSize = 8;
};

struct BrcbRepeatParams {
  BrcbRepeatParams() {}
  BrcbRepeatParams(Field<uint16_t> dst_block, Field<uint16_t> dst_repeat)
      : dstRepStride(dst_repeat), dstBlkStride(dst_block) {}

  Field<uint16_t> dstRepStride = 8;
  Field<uint16_t> dstBlkStride = 1;
};

struct GatherMaskParams {
  GatherMaskParams() {}
  GatherMaskParams(Field<uint8_t> src0_block, Field<uint16_t> repeats, Field<uint16_t> src0_repeat,
                   Field<uint8_t> src1_repeat)
      : src0BlockStride(src0_block),
        repeatTimes(repeats),
        src0RepeatStride(src0_repeat),
        src1RepeatStride(src1_repeat) {}

  Field<uint8_t> src0BlockStride = 1;
  Field<uint16_t> repeatTimes = 0;
  Field<uint16_t> src0RepeatStride = 8;
  Field<uint8_t> src1RepeatStride = 8;
};

}  // namespace AscendC
