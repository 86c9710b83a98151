// SPDX-License-Identifier: Apache-2.0
#include "tensors.h"

#include <cstring>

#include "elements.h"
#include "errors.h"

using namespace virtual_cann;

int64_t aclTensor::count() const {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  return count;
}

bool aclScalar::floating() const { return is_floating(dtype); }

namespace virtual_cann {

bool is_floating(aclDataType dtype) {
  return dtype == ACL_FLOAT || dtype == ACL_FLOAT16 || dtype == ACL_BF16 || dtype == ACL_DOUBLE;
}

int64_t item_bytes(aclDataType dtype) {
  return with_stored_type(dtype, [](auto stored) { return static_cast<int64_t>(sizeof(stored)); });
}

}  // namespace virtual_cann

extern "C" {

// The storage's shape is ignored: sizes, strides and the register of live memory say all that it could. A dtype that no
// operator computes with is accepted here; the operator refuses it, by name.
aclTensor* aclCreateTensor(const int64_t* sizes, uint64_t dims, aclDataType dtype, const int64_t* strides,
                           int64_t offset, aclFormat, const int64_t*, uint64_t, void* storage) {
  size_t bytes = aclDataTypeSize(dtype);
  return new aclTensor{{sizes, sizes + dims},
                       {strides, strides + dims},
                       dtype,
                       static_cast<uint8_t*>(storage) + offset * static_cast<int64_t>(bytes)};
}

aclScalar* aclCreateScalar(void* value, aclDataType dtype) {
  auto* scalar = new aclScalar{dtype, 0, 0};
  aclError error = api(__func__, [&] {
    auto* stored = static_cast<const uint8_t*>(value);
    if (scalar->floating()) {
      scalar->real = loader<double>(dtype)(stored);
    } else {
      scalar->integer = loader<int64_t>(dtype)(stored);
    }
  });
  if (error == ACL_SUCCESS) return scalar;
  delete scalar;
  return nullptr;
}

aclIntArray* aclCreateIntArray(const int64_t* values, uint64_t count) {
  return new aclIntArray{{values, values + count}};
}

int aclDestroyTensor(const aclTensor* tensor) {
  delete tensor;
  return ACL_SUCCESS;
}

// The list owns the tensors from then on.
aclTensorList* aclCreateTensorList(const aclTensor* const* tensors, uint64_t count) {
  auto* list = new aclTensorList;
  for (uint64_t i = 0; i < count; ++i) {
    list->tensors.push_back(*tensors[i]);
    aclDestroyTensor(tensors[i]);
  }
  return list;
}

int aclDestroyTensorList(const aclTensorList* list) {
  delete list;
  return ACL_SUCCESS;
}

int aclDestroyScalar(const aclScalar* scalar) {
  delete scalar;
  return ACL_SUCCESS;
}

int aclDestroyIntArray(const aclIntArray* array) {
  delete array;
  return ACL_SUCCESS;
}

// 0 for an unknown dtype, as in CANN.
size_t aclDataTypeSize(aclDataType dtype) {
  try {
    return static_cast<size_t>(item_bytes(dtype));
  } catch (const Error&) {
    return 0;
  }
}

}  // extern "C"
