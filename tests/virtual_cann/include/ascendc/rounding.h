// SPDX-License-Identifier: Apache-2.0
// The rounding modes of Cast (精度转换). Out of range, integers saturate, and NaN becomes 0. No page says it of floats:
// they overflow as IEEE 754 has it for the mode's direction.
#pragma once

#include <cmath>
#include <limits>

#include "half.h"
#include "types.h"

namespace virtual_cann::api {

using AscendC::RoundMode;

// A binary format: the bits of its fraction, and the exponent of its smallest normal number.
struct Format {
  int fraction;
  int min_exponent;
  int max_exponent;
};
template <class T>
constexpr Format kFormat = std::is_same_v<T, half>         ? Format{10, -14, 15}
                           : std::is_same_v<T, bfloat16_t> ? Format{7, -126, 127}
                                                           : Format{23, -126, 127};

// Whether the magnitude `kept` rounds up by one unit. `cut` is the part that was cut off.
inline bool rounds_up(RoundMode mode, bool negative, uint64_t kept, uint64_t cut, uint64_t half_unit) {
  if (!cut) return false;
  switch (mode) {
    case RoundMode::CAST_FLOOR:
      return negative;
    case RoundMode::CAST_CEIL:
      return !negative;
    case RoundMode::CAST_ROUND:
      return cut >= half_unit;
    case RoundMode::CAST_TRUNC:
      return false;
    case RoundMode::CAST_ODD:
      return !(kept & 1);
    default:
      return cut > half_unit || (cut == half_unit && (kept & 1));
  }
}

// magnitude * 2^exponent with its sign, rounded to T and returned as a float, which can hold all values of T.
template <class T>
float round_to_format(RoundMode mode, bool negative, uint64_t magnitude, int exponent) {
  constexpr Format format = kFormat<T>;
  if (!magnitude) return negative ? -0.0f : 0.0f;
  const int leading = 63 - __builtin_clzll(magnitude) + exponent;
  const int unit = std::max(leading, format.min_exponent) - format.fraction;
  const int shift = unit - exponent;
  uint64_t kept = shift <= 0 ? magnitude << -shift : shift < 64 ? magnitude >> shift : 0;
  if (shift > 0) {
    // For shift >= 64, half a unit is at least 2^63; ~0 exceeds every magnitude, so that the result rounds down.
    const uint64_t cut = shift < 64 ? magnitude & ((uint64_t{1} << shift) - 1) : magnitude;
    const uint64_t half_unit = shift <= 63 ? uint64_t{1} << (shift - 1) : ~uint64_t{0};
    kept += rounds_up(mode, negative, kept, cut, half_unit);
  }
  const float result = std::ldexp(static_cast<float>(kept), unit);
  const float largest = std::ldexp(2.0f - std::ldexp(1.0f, -format.fraction), format.max_exponent);
  const float infinity = std::numeric_limits<float>::infinity();
  if (result <= largest) return negative ? -result : result;
  const bool to_infinity = mode == RoundMode::CAST_FLOOR                                  ? negative
                           : mode == RoundMode::CAST_CEIL                                 ? !negative
                           : mode == RoundMode::CAST_TRUNC || mode == RoundMode::CAST_ODD ? false
                                                                                          : true;
  const float bound = to_infinity ? infinity : largest;
  return negative ? -bound : bound;
}

template <class T>
float round_float_to_format(RoundMode mode, float value) {
  if (!std::isfinite(value)) return value;
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t biased = bits >> 23 & 0xff, fraction = bits & 0x7fffff;
  return biased ? round_to_format<T>(mode, bits >> 31, fraction | 0x800000, static_cast<int>(biased) - 150)
                : round_to_format<T>(mode, bits >> 31, fraction, -149);
}

template <class T>
float round_integer_to_format(RoundMode mode, int64_t value) {
  const uint64_t magnitude = value < 0 ? -static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  return round_to_format<T>(mode, value < 0, magnitude, 0);
}

inline float round_to_integral(RoundMode mode, float value) {
  switch (mode) {
    case RoundMode::CAST_FLOOR:
      return std::floor(value);
    case RoundMode::CAST_CEIL:
      return std::ceil(value);
    case RoundMode::CAST_ROUND:
      return std::round(value);
    case RoundMode::CAST_TRUNC:
      return std::trunc(value);
    default:
      return std::nearbyint(value);
  }
}

template <class Integer>
Integer saturate(float integral) {
  // The bounds as floats. Rounding may make the upper one largest + 1, which is out of range itself.
  constexpr auto lowest = static_cast<float>(std::numeric_limits<Integer>::min());
  constexpr auto beyond = static_cast<float>(std::numeric_limits<Integer>::max());
  if (integral != integral) return 0;
  if (integral <= lowest) return std::numeric_limits<Integer>::min();
  if (integral >= beyond) return std::numeric_limits<Integer>::max();
  return static_cast<Integer>(integral);
}

template <class Integer>
Integer saturate(int64_t value) {
  return static_cast<Integer>(
      std::clamp<int64_t>(value, std::numeric_limits<Integer>::min(), std::numeric_limits<Integer>::max()));
}

}  // namespace virtual_cann::api
