// SPDX-License-Identifier: Apache-2.0
#include "strided_loop.h"

#include "errors.h"

namespace virtual_cann {
namespace {

std::string text(const Sizes& sizes) {
  std::string text = "(";
  for (int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

}  // namespace

Sizes broadcast(const Sizes& left, const Sizes& right) {
  Sizes sizes = left.size() < right.size() ? right : left;
  for (const Sizes* given : {&left, &right}) {
    const size_t missing = sizes.size() - given->size();
    for (size_t dim = 0; dim < given->size(); ++dim) {
      if (sizes[missing + dim] == 1) sizes[missing + dim] = (*given)[dim];
    }
  }
  return sizes;  // spread() refuses a mismatch
}

Operand spread(const aclTensor& tensor, const Sizes& sizes) {
  auto misfit = [&]() -> Error {
    return {ACL_ERROR_INVALID_PARAM, "shape " + text(tensor.sizes) + " does not broadcast to " + text(sizes)};
  };
  if (tensor.sizes.size() > sizes.size()) throw misfit();
  const size_t missing = sizes.size() - tensor.sizes.size();
  Operand operand{tensor.first, std::vector<int64_t>(sizes.size(), 0)};
  const int64_t bytes = item_bytes(tensor.dtype);
  for (size_t dim = 0; dim < tensor.sizes.size(); ++dim) {
    if (tensor.sizes[dim] == sizes[missing + dim]) {
      operand.byte_strides[missing + dim] = tensor.strides[dim] * bytes;
    } else if (tensor.sizes[dim] != 1) {
      throw misfit();
    }
  }
  return operand;
}

}  // namespace virtual_cann
