// SPDX-License-Identifier: Apache-2.0
// The element types of dtypes, and their conversion to and from the type that an operator computes in.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "errors.h"
#include "machine/half.h"

namespace virtual_cann {

struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  explicit BFloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    // Rounds to nearest, ties to even. A NaN keeps its top bits and stays a NaN.
    bits = static_cast<uint16_t>(value != value ? (word >> 16) | 0x40 : (word + 0x7FFF + ((word >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }
};

template <class Visitor>
auto with_stored_type(aclDataType dtype, Visitor&& visit) {
  switch (dtype) {
    case ACL_FLOAT:
      return visit(float());
    case ACL_FLOAT16:
      return visit(Half());
    case ACL_BF16:
      return visit(BFloat16());
    case ACL_DOUBLE:
      return visit(double());
    case ACL_INT64:
      return visit(int64_t());
    case ACL_INT32:
      return visit(int32_t());
    case ACL_INT16:
      return visit(int16_t());
    case ACL_INT8:
      return visit(int8_t());
    case ACL_UINT8:
      return visit(uint8_t());
    case ACL_BOOL:
      return visit(bool());
    default:
      throw Error(ACL_ERROR_API_NOT_SUPPORT,
                  "the virtual CANN does not compute with dtype " + std::to_string(dtype) + " of aclDataType");
  }
}

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<From, BFloat16>) {
    return static_cast<To>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, BFloat16>) {
    return BFloat16(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

template <class T>
using Loader = T (*)(const uint8_t*);
template <class T>
using Storer = void (*)(uint8_t*, T);

template <class T>
Loader<T> loader(aclDataType dtype) {
  return with_stored_type(dtype, [](auto example) -> Loader<T> {
    return [](const uint8_t* from) {
      decltype(example) stored;
      std::memcpy(&stored, from, sizeof stored);
      return convert<T>(stored);
    };
  });
}

template <class T>
Storer<T> storer(aclDataType dtype) {
  return with_stored_type(dtype, [](auto example) -> Storer<T> {
    return [](uint8_t* to, T value) {
      auto stored = convert<decltype(example)>(value);
      std::memcpy(to, &stored, sizeof stored);
    };
  });
}

}  // namespace virtual_cann
