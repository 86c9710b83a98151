// SPDX-License-Identifier: Apache-2.0
// Loads, stores and conversions over the back end that the compiler's flags select.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "avx2.h"
#elif defined(__aarch64__)
#include "neon.h"
#else
#include "baseline.h"
#endif

namespace npu_ce {

NPU_CE_INLINE DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) { return a * b + c; }
NPU_CE_INLINE DoubleVec max(DoubleVec a, DoubleVec b) { return a > b ? a : b; }
NPU_CE_INLINE bool any_greater(DoubleVec a, DoubleVec b) {
  bool any = false;
  for (int lane = 0; lane < kLanes<double>; ++lane) any |= a[lane] > b[lane];
  return any;
}

NPU_CE_INLINE FloatVec splat(float value) { return value - (FloatVec){}; }
NPU_CE_INLINE DoubleVec splat(double value) { return value - (DoubleVec){}; }

template <class V, class E>
NPU_CE_INLINE V load_bits(const E* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

NPU_CE_INLINE FloatVec load(const float* from) { return load_bits<FloatVec>(from); }
NPU_CE_INLINE DoubleVec load(const double* from) { return load_bits<DoubleVec>(from); }
NPU_CE_INLINE FloatVec load(const BFloat16* from) { return (FloatVec)(widen_bits(load_bits<UInt16Vec>(from)) << 16); }
NPU_CE_INLINE FloatVec load(const Float16* from) { return widen_half(load_bits<UInt16Vec>(from)); }

// Round to nearest even. A NaN's mantissa is filled, as the rounding carry could make an infinity of it.
NPU_CE_INLINE UInt16Vec narrow_bfloat16(FloatVec v) {
  const UInt32Vec bits = (UInt32Vec)v;
  const UInt32Vec rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return narrow_bits((rounded | ((UInt32Vec)(v != v) >> 1)) >> 16);
}

// What is stored: the vector itself, or its 16-bit form.
template <class T>
NPU_CE_INLINE auto narrow(Vec<T> v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return narrow_bfloat16(v);
  } else if constexpr (std::is_same_v<T, Float16>) {
    return narrow_half(v);
  } else {
    return v;
  }
}

template <class T>
NPU_CE_INLINE void store(T* to, Vec<T> v) {
  const auto bits = narrow<T>(v);
  std::memcpy(to, &bits, sizeof(bits));
}

// Prefetches what a loop over memory reads a page after `from`, since the hardware's prefetcher stops at the end of a
// page. An address that is not mapped does no harm.
template <int64_t kElems, class T>
NPU_CE_INLINE void prefetch(const T* from) {
  constexpr uintptr_t page_bytes = 4096;
  constexpr uintptr_t line_bytes = 64;
  const uintptr_t ahead = reinterpret_cast<uintptr_t>(from) + page_bytes;
  NPU_CE_UNROLL
  for (uintptr_t at = 0; at < kElems * sizeof(T); at += line_bytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(ahead + at));
  }
}

// The elements of two neighbouring vectors, each in the lane where its conversion takes least work. store_pair puts
// them back where load_pair found them.
template <class V>
struct Pair {
  V first;
  V second;
};

template <class T>
NPU_CE_INLINE Pair<Vec<T>> load_pair(const T* from) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const UInt32Vec bits = load_bits<UInt32Vec>(from);
    return {(FloatVec)(bits << 16), (FloatVec)(bits & 0xffff0000u)};
  } else {
    return {load(from), load(from + kLanes<T>)};
  }
}

// bfloat16 is rounded to nearest, ties away from zero: as near as ties to even, for half the instructions. The low 16
// bits of a NaN must be zero, or the carry could take it for a number.
template <class T>
NPU_CE_INLINE void store_pair(T* to, Pair<Vec<T>> v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const UInt32Vec first = (UInt32Vec)v.first + 0x8000u;
    const UInt32Vec second = (UInt32Vec)v.second + 0x8000u;
    const UInt32Vec bits = (first >> 16) | (second & 0xffff0000u);
    std::memcpy(to, &bits, sizeof(bits));
  } else {
    store(to, v.first);
    store(to + kLanes<T>, v.second);
  }
}

// The first `count` lanes; the others are zero, and nothing behind them is touched.
template <class T>
NPU_CE_INLINE Vec<T> load_partial(const T* from, int64_t count) {
  T lanes[kLanes<T>] = {};
  std::memcpy(lanes, from, static_cast<size_t>(count) * sizeof(T));
  return load(lanes);
}

template <class T>
NPU_CE_INLINE void store_partial(T* to, Vec<T> v, int64_t count) {
  const auto bits = narrow<T>(v);
  std::memcpy(to, &bits, static_cast<size_t>(count) * sizeof(T));
}

// With count == kLanes known to the compiler, these two are the plain load and store.
template <class T>
NPU_CE_INLINE Vec<T> load(const T* from, int64_t count) {
  return count == kLanes<T> ? load(from) : load_partial(from, count);
}

template <class T>
NPU_CE_INLINE T from_acc(Acc<T> value) {
  const auto bits = narrow<T>(splat(value));
  T result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// These convert as many values as DoubleVec has lanes, whatever the size of a value in memory.
using HalfFloatVec = float __attribute__((vector_size(kVectorBytes / 2)));
using HalfInt32Vec = int32_t __attribute__((vector_size(kVectorBytes / 2)));
NPU_CE_INLINE DoubleVec load_doubles(const float* from) {
  return __builtin_convertvector(load_bits<HalfFloatVec>(from), DoubleVec);
}
NPU_CE_INLINE DoubleVec load_doubles(const double* from) { return load(from); }
NPU_CE_INLINE void store_doubles(float* to, DoubleVec v) {
  const HalfFloatVec floats = __builtin_convertvector(v, HalfFloatVec);
  std::memcpy(to, &floats, sizeof(floats));
}
NPU_CE_INLINE void store_doubles(double* to, DoubleVec v) { store(to, v); }
NPU_CE_INLINE void store_indices(int32_t* to, Int64Vec v) {
  const HalfInt32Vec indices = __builtin_convertvector(v, HalfInt32Vec);
  std::memcpy(to, &indices, sizeof(indices));
}
NPU_CE_INLINE void store_indices(int64_t* to, Int64Vec v) { std::memcpy(to, &v, sizeof(v)); }

NPU_CE_INLINE float to_acc(float value) { return value; }
NPU_CE_INLINE double to_acc(double value) { return value; }
NPU_CE_INLINE float to_acc(BFloat16 value) { return ((FloatVec)(UInt32Vec{} + (uint32_t(value.bits) << 16)))[0]; }
NPU_CE_INLINE float to_acc(Float16 value) { return widen_half(UInt16Vec{} + value.bits)[0]; }

template <class V>
NPU_CE_INLINE double sum_lanes(V v) {
  constexpr int lanes = sizeof(v) / sizeof(v[0]);
  double sum = 0;
  for (int lane = 0; lane < lanes; ++lane) sum += v[lane];
  return sum;
}

// a[k], b[k], a[k + 1], b[k + 1], ... from k = kFirst on.
template <class A, int kFirst, size_t... kLane>
NPU_CE_INLINE Vec<A> interleave(Vec<A> a, Vec<A> b, std::index_sequence<kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kFirst + kLane / 2 + kLane % 2 * sizeof...(kLane))...);
#else
  using Index = typename Numeric<A>::IndexVec;
  return __builtin_shuffle(a, b, Index{(kFirst + kLane / 2 + kLane % 2 * sizeof...(kLane))...});
#endif
}

// Transposes a square: interleaving the upper half of its rows with the lower half, once for each bit of a row's index,
// moves these bits to the lanes.
template <class A>
NPU_CE_INLINE void transpose(Vec<A> (&rows)[kLanes<A>]) {
  constexpr int lanes = kLanes<A>;
  constexpr auto every_lane = std::make_index_sequence<lanes>();
  NPU_CE_UNROLL
  for (int step = 1; step < lanes; step *= 2) {
    Vec<A> mixed[lanes];
    NPU_CE_UNROLL
    for (int i = 0; i < lanes / 2; ++i) {
      mixed[2 * i] = interleave<A, 0>(rows[i], rows[i + lanes / 2], every_lane);
      mixed[2 * i + 1] = interleave<A, lanes / 2>(rows[i], rows[i + lanes / 2], every_lane);
    }
    NPU_CE_UNROLL
    for (int i = 0; i < lanes; ++i) rows[i] = mixed[i];
  }
}

template <class V>
NPU_CE_INLINE auto max_lane(V v) {
  constexpr int lanes = sizeof(v) / sizeof(v[0]);
  auto result = v[0];
  for (int lane = 1; lane < lanes; ++lane) result = v[lane] > result ? v[lane] : result;
  return result;
}

}  // namespace npu_ce
