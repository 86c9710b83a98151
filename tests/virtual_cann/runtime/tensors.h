// SPDX-License-Identifier: Apache-2.0
// The descriptors of aclnn operators. The wheel has no header for them; the C signatures are CANN's.
#pragma once

#include <cstdint>
#include <vector>

#include "acl/acl.h"

struct aclTensor {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;  // elements
  aclDataType dtype;
  uint8_t* first;  // the element with all indices 0

  int64_t count() const;
};

struct aclScalar {
  aclDataType dtype;
  double real;      // for a floating dtype
  int64_t integer;  // for the others

  template <class T>
  T as() const {
    return floating() ? static_cast<T>(real) : static_cast<T>(integer);
  }
  bool floating() const;
};

struct aclIntArray {
  std::vector<int64_t> values;
};

struct aclTensorList {
  std::vector<aclTensor> tensors;
};

namespace virtual_cann {

bool is_floating(aclDataType dtype);
int64_t item_bytes(aclDataType dtype);  // throws Error for a dtype that no operator here computes with

}  // namespace virtual_cann
