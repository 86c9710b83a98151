// SPDX-License-Identifier: Apache-2.0
// Vector types of the width that the compiler's flags allow. A 64-byte vector without AVX-512 would spill on every
// operation.
#pragma once

#include <cstdint>

#define NPU_CE_INLINE inline __attribute__((always_inline))
#define NPU_CE_UNROLL _Pragma("GCC unroll 16")
// For functions that are called once per row or block from several places: inlining them only costs compile time.
#define NPU_CE_NOINLINE __attribute__((noinline))

namespace npu_ce {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

using FloatVec = float __attribute__((vector_size(kVectorBytes)));
using DoubleVec = double __attribute__((vector_size(kVectorBytes)));
using Int32Vec = int32_t __attribute__((vector_size(kVectorBytes)));
using UInt32Vec = uint32_t __attribute__((vector_size(kVectorBytes)));
using Int64Vec = int64_t __attribute__((vector_size(kVectorBytes)));
using UInt64Vec = uint64_t __attribute__((vector_size(kVectorBytes)));
using UInt16Vec = uint16_t __attribute__((vector_size(kVectorBytes / 2)));

// Storage of the 16-bit dtypes; arithmetic on them is always in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct Numeric;  // Acc: what T is accumulated in; Vec: a vector of Acc; Index, IndexVec: integers of the same size
template <>
struct Numeric<float> {
  using Acc = float;
  using Vec = FloatVec;
  using Index = int32_t;
  using IndexVec = Int32Vec;
};
template <>
struct Numeric<BFloat16> : Numeric<float> {};
template <>
struct Numeric<Float16> : Numeric<float> {};
template <>
struct Numeric<double> {
  using Acc = double;
  using Vec = DoubleVec;
  using Index = int64_t;
  using IndexVec = Int64Vec;
};

template <class T>
using Acc = typename Numeric<T>::Acc;
template <class T>
using Vec = typename Numeric<T>::Vec;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Acc<T>));

}  // namespace npu_ce
