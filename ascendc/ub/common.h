// SPDX-License-Identifier: Apache-2.0
// Bytes of UB. This folder says once which vectors and tiles there are and what they take: the kernels hand it to
// InitBuffer, the plans of csrc/npu/ add it up. Sums are of all buffers of one class or kernel.
#pragma once

#include "../abi/problem.h"

// A function of kernels and of the host, whose compiler does not know of the former.
#ifdef __aicore__
#define NPU_CE_SHARED __aicore__ inline
#else
#define NPU_CE_SHARED inline
#endif

namespace npu_ce {

constexpr uint32_t kBlockBytes = 32;  // what UB addresses and strides count in
constexpr uint32_t kBlockFloats = kBlockBytes / sizeof(float);

NPU_CE_SHARED uint32_t CeilTo(uint32_t n, uint32_t multiple) { return (n + multiple - 1) / multiple * multiple; }

NPU_CE_SHARED uint32_t ElementBytes(int32_t dtype) { return dtype == kCeFloat32 ? 4 : 2; }

// Of float32 or int32 lanes.
NPU_CE_SHARED uint32_t LaneBytes(uint32_t count) { return count * sizeof(float); }

// A bit for each of `count` lanes, for instructions that count in blocks.
NPU_CE_SHARED uint32_t BitBytes(uint32_t count) { return CeilTo(count / 8, kBlockBytes); }

// A block for each of `count` rows or units.
NPU_CE_SHARED uint32_t BlocksBytes(uint32_t count) { return count * kBlockBytes; }

// Targets, of `capacity` rows, a multiple of 64.
struct TargetBytes {
  static constexpr uint32_t kBitVectors = 3, kConstants = 3;

  NPU_CE_SHARED TargetBytes(int32_t dtype, uint32_t capacity)
      : in(LaneBytes(capacity * (dtype == kCeInt64 ? 2 : 1))),
        low(LaneBytes(capacity)),
        classes(LaneBytes(capacity)),
        bits(kBitVectors * BitBytes(capacity)),
        constants(LaneBytes(kConstants * kCeLanes)) {}
  NPU_CE_SHARED uint32_t Sum(uint32_t buffers) const { return buffers * in + low + classes + bits + constants; }

  uint32_t in;  // of each of its buffers
  uint32_t low, classes, bits, constants;
};

// Logits: the numerator of the softcap.
NPU_CE_SHARED uint32_t NumeratorBytes(float softcap) { return softcap != 0 ? kBlockBytes : 0; }

}  // namespace npu_ce
