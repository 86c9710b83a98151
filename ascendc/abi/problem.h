// SPDX-License-Identifier: Apache-2.0
// What the host hands to a launch: plain structs, passed by value. Host and device compile this folder's headers, and
// tests parse them, so they may hold nothing but fields and constants.
#pragma once

#include <stdint.h>

enum CeDtype : int32_t { kCeFloat32 = 0, kCeFloat16 = 1, kCeBFloat16 = 2, kCeInt32 = 3, kCeInt64 = 4 };

// The values of the operators' schemas.
enum CeReduction : int32_t { kCeNone = 0, kCeMean = 1, kCeSum = 2 };

// 64 float32 lanes are one repeat of the vector unit.
constexpr uint32_t kCeLanes = 64;

// Floats from row to row of a tile of many rows, up to which an instruction takes eight rows a repeat: in blocks, eight
// rows are then within the 8 bits of a repeat stride.
constexpr uint32_t kCeBlockPitch = 248;

// In bytes. Each third of the UB has banks of its own (page "Avoid bank conflicts (2201)").
constexpr uint32_t kCeUbThird = 64 * 1024;

// The loss's formula and its tensors. Sizes and strides are in elements.
struct CeProblem {
  const void* input;  // [rows, classes], column stride 1, any alignment
  uint64_t rows;
  uint64_t row_stride;
  uint32_t classes;
  int32_t dtype;
  const void* target;    // [rows], contiguous
  int32_t target_dtype;  // int32 or int64
  int32_t reduction;
  const void* weight;  // float32 [classes], or null
  int64_t ignore_index;
  float label_smoothing;
  float z_loss;
  float softcap;  // 0 means none
  float logit_scale;
};
