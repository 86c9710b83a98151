// SPDX-License-Identifier: Apache-2.0
// The 16-bit floats. They are converted by integer arithmetic: without F16C, g++'s own conversion calls a library
// function for each element.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "machine/half.h"

using half = virtual_cann::Half;

// A namespace for names of the headers only; those of virtual_cann are also in libascendcl.
namespace virtual_cann::api {

using namespace virtual_cann;

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Both directions are branch-free, so that loops vectorise. Infinities and NaN are kept, as A2 does by default
// (INF_NAN_MODE_ENABLE).
inline float half_bits_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  const float scaled = bit_cast<float>(magnitude) * 0x1p112f;  // rebias; subnormal halves become normal floats
  const uint32_t special = (bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return bit_cast<float>(sign | special | bit_cast<uint32_t>(scaled));
}

inline uint16_t float_to_half_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // 0.5f has the ulp of a subnormal half (2^-24), so the addition rounds to it.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return static_cast<uint16_t>(sign | (magnitude >= 0x477ff000u ? special : finite));
}

inline float bfloat16_bits_to_float(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t float_to_bfloat16_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded);
}

}  // namespace virtual_cann::api

// A2 converts and copies bfloat16_t, and has no arithmetic for it.
struct bfloat16_t {
  bfloat16_t() = default;
  template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number> || std::is_same_v<Number, half>>>
  bfloat16_t(Number value) : bits(virtual_cann::api::float_to_bfloat16_bits(static_cast<float>(value))) {}

  uint16_t bits;
};

namespace virtual_cann::api {

// The type that an instruction computes in: float for half. A float has more than twice half's precision, so rounding
// to half after each operation is as exact as half arithmetic.
template <class T>
inline auto widen(T value) {
  if constexpr (std::is_same_v<T, half>)
    return half_bits_to_float(bit_cast<uint16_t>(value));
  else if constexpr (std::is_same_v<T, bfloat16_t>)
    return bfloat16_bits_to_float(value.bits);
  else
    return value;
}

template <class T>
using Wide = decltype(widen(T()));

template <class T>
inline T narrow(Wide<T> value) {
  if constexpr (std::is_same_v<T, half>)
    return bit_cast<half>(float_to_half_bits(value));
  else if constexpr (std::is_same_v<T, bfloat16_t>)
    return value;
  else
    return value;
}

}  // namespace virtual_cann::api

namespace AscendC {

inline float ToFloat(const bfloat16_t& value) { return virtual_cann::api::widen(value); }
inline bfloat16_t ToBfloat16(const float& value) { return value; }

}  // namespace AscendC
