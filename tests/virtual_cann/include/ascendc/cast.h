// SPDX-License-Identifier: Apache-2.0
// Cast, for the pairs of types and the modes that the page Cast lists for A2.
#pragma once

#include "elementwise.h"
#include "rounding.h"

namespace virtual_cann::api {

constexpr uint32_t cast_mode_bit(RoundMode mode) { return 1u << static_cast<uint32_t>(mode); }
constexpr uint32_t kNone = cast_mode_bit(RoundMode::CAST_NONE);
constexpr uint32_t kOdd = cast_mode_bit(RoundMode::CAST_ODD);
constexpr uint32_t kRounding = cast_mode_bit(RoundMode::CAST_RINT) | cast_mode_bit(RoundMode::CAST_FLOOR) |
                               cast_mode_bit(RoundMode::CAST_CEIL) | cast_mode_bit(RoundMode::CAST_ROUND) |
                               cast_mode_bit(RoundMode::CAST_TRUNC);

template <class T, class... Members>
constexpr bool is_any = (std::is_same_v<T, Members> || ...);

// The modes of a conversion, one bit each; 0 if the conversion does not exist.
template <class To, class From>
constexpr uint32_t cast_modes() {
  if (is_any<From, int8_t, uint8_t>) return is_any<To, half> ? kNone : 0;
  if (is_any<From, int16_t>) return is_any<To, half> ? kRounding | kNone : is_any<To, float> ? kNone : 0;
  if (is_any<From, int32_t>) return is_any<To, int16_t, int64_t> ? kNone : is_any<To, float> ? kRounding | kNone : 0;
  if (is_any<From, int64_t>) return is_any<To, int32_t> ? kNone : is_any<To, float> ? kRounding : 0;
  if (is_any<From, half>)
    return is_any<To, int8_t, uint8_t>    ? kRounding | kNone
           : is_any<To, int16_t, int32_t> ? kRounding
           : is_any<To, float>            ? kNone
                                          : 0;
  if (is_any<From, bfloat16_t>) return is_any<To, int32_t> ? kRounding : is_any<To, float> ? kNone : 0;
  if (is_any<From, float>)
    return is_any<To, int16_t, int32_t, int64_t, bfloat16_t, float> ? kRounding
           : is_any<To, half>                                       ? kRounding | kNone | kOdd
                                                                    : 0;
  return 0;
}

struct Conversion {
  template <class To, class From>
  static constexpr bool has = cast_modes<To, From>() != 0;
};

// The value rounded to a value of To, held in the type that To is computed in.
template <class To, class Value>
Wide<To> converted(RoundMode mode, Value value) {
  constexpr bool from_integer = std::is_integral_v<Value>, to_integer = std::is_integral_v<To>;
  if constexpr (from_integer && to_integer)
    return saturate<To>(static_cast<int64_t>(value));
  else if constexpr (from_integer)
    return round_integer_to_format<To>(mode, value);
  else if constexpr (to_integer)
    return saturate<To>(round_to_integral(mode, value));
  else if constexpr (std::is_same_v<To, float>)
    return round_to_integral(mode, value);
  else
    return round_float_to_format<To>(mode, value);
}

template <bool set_mask, class Shape, class To, class From>
void cast(AscendC::Place place, RoundMode mode, const Shape& shape, const AscendC::LocalTensor<To>& dst,
          const AscendC::LocalTensor<From>& src) {
  static_assert(!(is_any<To, half> && is_any<From, int32_t>), "not modelled: int32_t to half, and its SetDeqScale");
  constexpr uint32_t modes = cast_modes<To, From>();
  VectorCall call("Cast", place, VectorClass::cast);
  if constexpr (modes == 0) {
    call.wrong_type();
  } else {
    if (!(modes & cast_mode_bit(mode)))
      call.core.violate(Rule::cast_mode, modes == kNone ? "CAST_NONE" : "a mode that the page Cast has for these types",
                        "RoundMode " + text(static_cast<uint32_t>(mode)));
    // Where the mode rounds to nearest, or the conversion is exact, narrow() does all the rounding.
    const bool nearest = mode == RoundMode::CAST_NONE || mode == RoundMode::CAST_RINT;
    constexpr bool to_half_width = is_any<To, half, bfloat16_t> && is_any<From, float>;
    constexpr bool exact = is_any<To, float> && is_any<From, half, bfloat16_t>;
    if constexpr (exact || to_half_width)
      if (exact || nearest) return elementwise<Conversion, set_mask>(call, [](float x) { return x; }, shape, dst, src);
    if constexpr (!exact)
      elementwise<Conversion, set_mask>(call, [mode](auto x) { return converted<To>(mode, x); }, shape, dst, src);
  }
}

}  // namespace virtual_cann::api

namespace AscendC {

template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode, const uint32_t count,
          Place place = Place::here()) {
  virtual_cann::api::cast<isSetMask>(place, roundMode, virtual_cann::api::Count{count}, dst, src);
}

template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          virtual_cann::api::MaskArgument mask, Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams,
          Place place = Place::here()) {
  const virtual_cann::api::Repeated<UnaryRepeatParams> shape{mask, repeatTime.meant(), repeatParams};
  virtual_cann::api::cast<isSetMask>(place, roundMode, shape, dst, src);
}

}  // namespace AscendC
