// SPDX-License-Identifier: Apache-2.0
// dst[i] = f(src0[i], src1[i]). No page says what integer overflow does, or NaN in Max and Min: here integers wrap, and
// Max and Min of a number and a NaN are the number.
#pragma once

#include "elementwise.h"

namespace virtual_cann::api {

// Integer arithmetic that wraps; float and half are computed in float.
template <class F>
auto wrapping(F f) {
  return [f](auto a, auto b) {
    using T = decltype(a);
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(f(static_cast<uint32_t>(a), static_cast<uint32_t>(b)));
    else
      return f(a, b);
  };
}

constexpr auto greater_of = [](auto a, auto b) { return a > b || b != b ? a : b; };
constexpr auto lesser_of = [](auto a, auto b) { return a < b || b != b ? a : b; };
inline const auto sum_of = wrapping([](auto a, auto b) { return a + b; });
inline const auto product_of = wrapping([](auto a, auto b) { return a * b; });

}  // namespace virtual_cann::api

#define VIRTUAL_CANN_BINARY(Name, kind, Supported, accumulates, f)                                                   \
  template <typename T, bool isSetMask = true>                                                                       \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, const int32_t& count, \
            Place place = Place::here()) {                                                                           \
    using namespace virtual_cann::api;                                                                               \
    elementwise<Supported, isSetMask>({#Name, place, VectorClass::kind}, f, Count{count}, dst, src0, src1);          \
  }                                                                                                                  \
  template <typename T, bool isSetMask = true>                                                                       \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,                       \
            virtual_cann::api::MaskArgument mask, Field<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams, \
            Place place = Place::here()) {                                                                           \
    using namespace virtual_cann::api;                                                                               \
    const Repeated<BinaryRepeatParams> shape{mask, repeatTime.meant(), repeatParams};                                \
    elementwise<Supported, isSetMask>({#Name, place, VectorClass::kind, accumulates && !std::is_same_v<T, int16_t>}, \
                                      f, shape, dst, src0, src1);                                                    \
  }

namespace AscendC {

VIRTUAL_CANN_BINARY(Add, simple, Numbers, true, sum_of)
VIRTUAL_CANN_BINARY(Sub, simple, Numbers, true, wrapping([](auto a, auto b) { return a - b; }))
VIRTUAL_CANN_BINARY(Mul, simple, Numbers, true, product_of)
VIRTUAL_CANN_BINARY(Div, divide, Floats, false, [](float a, float b) { return a / b; })
VIRTUAL_CANN_BINARY(Max, simple, Numbers, true, greater_of)
VIRTUAL_CANN_BINARY(Min, simple, Numbers, true, lesser_of)
VIRTUAL_CANN_BINARY(And, simple, Bits16, false, wrapping([](auto a, auto b) { return a & b; }))
VIRTUAL_CANN_BINARY(Or, simple, Bits16, false, wrapping([](auto a, auto b) { return a | b; }))

}  // namespace AscendC

#undef VIRTUAL_CANN_BINARY
