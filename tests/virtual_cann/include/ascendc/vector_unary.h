// SPDX-License-Identifier: Apache-2.0
// dst[i] = f(src[i]). Reciprocal and Rsqrt are exact here; the hardware's relative error may exceed 1e-4 in float and
// 1e-3 in half (pages Reciprocal and Rsqrt), so a kernel that needs more accuracy uses Div and Sqrt.
#pragma once

#include <cmath>

#include "elementwise.h"

// Defines both forms of an API with one source: the first `count` elements, and repeats under a mask.
#define VIRTUAL_CANN_UNARY(Name, kind, Supported, f)                                                                   \
  template <typename T, bool isSetMask = true>                                                                         \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count, Place place = Place::here()) { \
    using namespace virtual_cann::api;                                                                                 \
    elementwise<Supported, isSetMask>({#Name, place, VectorClass::kind}, f, Count{count}, dst, src);                   \
  }                                                                                                                    \
  template <typename T, bool isSetMask = true>                                                                         \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, virtual_cann::api::MaskArgument mask,                \
            Field<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams, Place place = Place::here()) {           \
    using namespace virtual_cann::api;                                                                                 \
    const Repeated<UnaryRepeatParams> shape{mask, repeatTime.meant(), repeatParams};                                   \
    elementwise<Supported, isSetMask>({#Name, place, VectorClass::kind}, f, shape, dst, src);                          \
  }

namespace AscendC {

using HalfFloatInt32 = virtual_cann::api::Types<half, float, int32_t>;

VIRTUAL_CANN_UNARY(Exp, exp, Floats, [](float x) { return std::exp(x); })
VIRTUAL_CANN_UNARY(Ln, ln, Floats, [](float x) { return std::log(x); })
VIRTUAL_CANN_UNARY(Abs, simple, Floats, [](float x) { return std::fabs(x); })
VIRTUAL_CANN_UNARY(Reciprocal, divide, Floats, [](float x) { return 1.0f / x; })
VIRTUAL_CANN_UNARY(Sqrt, divide, Floats, [](float x) { return std::sqrt(x); })
VIRTUAL_CANN_UNARY(Rsqrt, divide, Floats, [](float x) { return 1.0f / std::sqrt(x); })
VIRTUAL_CANN_UNARY(Relu, simple, HalfFloatInt32, [](auto x) { return x > 0 ? x : decltype(x){0}; })
VIRTUAL_CANN_UNARY(Not, simple, Bits16, [](auto x) { return static_cast<decltype(x)>(~x); })

}  // namespace AscendC

#undef VIRTUAL_CANN_UNARY
