// SPDX-License-Identifier: Apache-2.0
// dst[i] = f(src[i], scalar).
#pragma once

#include "vector_binary.h"

#define VIRTUAL_CANN_SCALAR(Name, Supported, judge, f)                                                              \
  template <typename T, bool isSetMask = true>                                                                      \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, const int32_t& count,       \
            Place place = Place::here()) {                                                                          \
    using namespace virtual_cann::api;                                                                              \
    const auto with_scalar = [scalar = widen(scalarValue)](auto x) { return f(x, scalar); };                        \
    VectorCall call(#Name, place, VectorClass::simple);                                                             \
    judge(call, scalarValue);                                                                                       \
    elementwise<Supported, isSetMask>(call, with_scalar, Count{count}, dst, src);                                   \
  }                                                                                                                 \
  template <typename T, bool isSetMask = true>                                                                      \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,                             \
            virtual_cann::api::MaskArgument mask, Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams, \
            Place place = Place::here()) {                                                                          \
    using namespace virtual_cann::api;                                                                              \
    const auto with_scalar = [scalar = widen(scalarValue)](auto x) { return f(x, scalar); };                        \
    const Repeated<UnaryRepeatParams> shape{mask, repeatTime.meant(), repeatParams};                                \
    VectorCall call(#Name, place, VectorClass::simple);                                                             \
    judge(call, scalarValue);                                                                                       \
    elementwise<Supported, isSetMask>(call, with_scalar, shape, dst, src);                                          \
  }

namespace virtual_cann::api {

constexpr auto any_scalar = [](VectorCall&, auto) {};
constexpr auto shift = [](VectorCall& call, auto by) {
  call.require_range(Rule::shift_limit, "a shift", static_cast<int64_t>(by), 8 * sizeof(by));
};

// A shift of a signed type keeps the sign, also to the left (page ShiftLeft).
constexpr auto shifted_left = [](auto x, auto by) {
  using T = decltype(x);
  const auto bits = static_cast<std::make_unsigned_t<T>>(static_cast<uint64_t>(x) << static_cast<uint32_t>(by));
  if constexpr (std::is_signed_v<T>) {
    constexpr auto sign = static_cast<std::make_unsigned_t<T>>(std::numeric_limits<T>::min());
    return static_cast<T>((bits & ~sign) | (x < 0 ? sign : 0));
  }
  return static_cast<T>(bits);
};
constexpr auto shifted_right = [](auto x, auto by) {
  return static_cast<decltype(x)>(static_cast<int64_t>(x) >> static_cast<uint32_t>(by));
};

constexpr auto leaky = [](auto x, auto slope) { return x > 0 ? x : x * slope; };

struct MultiplyAndAdd {
  template <class T, class U>
  static constexpr bool pair = std::is_same_v<T, U> || (std::is_same_v<T, float> && std::is_same_v<U, half>);
  template <class D, class D2, class S>
  static constexpr bool has = Floats::has<D> && Floats::has<S> && pair<D, S>;
};

// dst is also a source. The product is rounded to dst's type before the addition; no page says otherwise.
template <bool set_mask, class Shape, class T, class U>
void axpy(AscendC::Place place, const Shape& shape, const AscendC::LocalTensor<T>& dst,
          const AscendC::LocalTensor<U>& src, U scalar) {
  const auto f = [scalar = static_cast<float>(widen(scalar))](float sum, float x) {
    return sum + static_cast<float>(widen(narrow<T>(scalar * x)));
  };
  elementwise<MultiplyAndAdd, set_mask>({"Axpy", place, VectorClass::simple}, f, shape, dst, dst, src);
}

}  // namespace virtual_cann::api

namespace AscendC {

VIRTUAL_CANN_SCALAR(Adds, Numbers, any_scalar, sum_of)
VIRTUAL_CANN_SCALAR(Muls, Numbers, any_scalar, product_of)
VIRTUAL_CANN_SCALAR(Maxs, Numbers, any_scalar, greater_of)
VIRTUAL_CANN_SCALAR(Mins, Numbers, any_scalar, lesser_of)
VIRTUAL_CANN_SCALAR(LeakyRelu, Floats, any_scalar, leaky)
VIRTUAL_CANN_SCALAR(ShiftLeft, Integers, shift, shifted_left)
VIRTUAL_CANN_SCALAR(ShiftRight, Integers, shift, shifted_right)

template <typename T, typename U, bool isSetMask = true>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, const int32_t& count,
          Place place = Place::here()) {
  virtual_cann::api::axpy<isSetMask>(place, virtual_cann::api::Count{count}, dst, src, scalarValue);
}

template <typename T, typename U, bool isSetMask = true>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue,
          virtual_cann::api::MaskArgument mask, Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams,
          Place place = Place::here()) {
  const virtual_cann::api::Repeated<UnaryRepeatParams> shape{mask, repeatTime.meant(), repeatParams};
  virtual_cann::api::axpy<isSetMask>(place, shape, dst, src, scalarValue);
}

}  // namespace AscendC

#undef VIRTUAL_CANN_SCALAR
