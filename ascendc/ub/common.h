// SPDX-License-Identifier: Apache-2.0
// Bytes of UB. This folder is the one place that says which vectors and tiles there are, and their sizes: the kernels
// hand these to InitBuffer, the plans of csrc/npu/ add them up. A Sum is over all buffers of one class or kernel.
#pragma once

#include "../abi/problem.h"

// Marks a function for the kernels and for the host, whose compiler does not know __aicore__.
#ifdef __aicore__
#define NPU_CE_SHARED __aicore__ inline
#else
#define NPU_CE_SHARED inline
#endif

namespace npu_ce {

constexpr uint32_t kBlockBytes = 32;  // the unit of UB addresses and strides
constexpr uint32_t kBlockFloats = kBlockBytes / sizeof(float);

NPU_CE_SHARED uint32_t CeilTo(uint32_t n, uint32_t multiple) { return (n + multiple - 1) / multiple * multiple; }

NPU_CE_SHARED uint32_t ElementBytes(int32_t dtype) { return dtype == kCeFloat32 ? 4 : 2; }

// Of float32 or int32 lanes.
NPU_CE_SHARED uint32_t LaneBytes(uint32_t count) { return count * sizeof(float); }

// A bit for each of `count` lanes, in whole blocks, as instructions take them.
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
