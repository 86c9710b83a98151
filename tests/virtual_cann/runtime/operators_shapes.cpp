// SPDX-License-Identifier: Apache-2.0
// Operators that move elements, and compute nothing.
#include "operators.h"

namespace virtual_cann {
namespace {

Plan copy(const aclTensor& to, const aclTensor& from) {
  return elementwise([](auto value) { return value; }, &to, &from);
}

// The number of selected elements becomes the shape of `to`, which torch_npu reads from its descriptor after
// aclnnMaskedSelect has returned.
Plan masked_select(const aclTensor* self, const aclTensor* mask, aclTensor* to) {
  Plan plan{{*self, *mask, *to}, {}, true};
  plan.run = [self = *self, mask = *mask, to] {
    Sizes sizes = broadcast(self.sizes, mask.sizes);
    const Loader<int64_t> chosen = loader<int64_t>(mask.dtype);
    const int64_t bytes = item_bytes(self.dtype);
    int64_t count = 0;
    strided_loop(sizes, std::array<Operand, 2>{spread(self, sizes), spread(mask, sizes)}, [&](const auto& at) {
      if (chosen(at[1])) std::memcpy(to->first + count++ * bytes, at[0], static_cast<size_t>(bytes));
    });
    to->sizes = {count};
  };
  return plan;
}

// to = self[numbers], along the first dimension; other indexing is not modelled.
Plan index(const aclTensor* self, const aclTensorList* indices, const aclTensor* to) {
  const aclTensor& only = indices->tensors.at(0);
  if (indices->tensors.size() != 1 || is_floating(only.dtype) || only.dtype == ACL_BOOL)
    throw Error(ACL_ERROR_API_NOT_SUPPORT, "the virtual CANN indexes by one tensor of integers");
  aclTensor numbers = only, first = *self;  // each broadcast over the other one's dimensions
  numbers.sizes.resize(to->sizes.size(), 1);
  numbers.strides.resize(to->sizes.size(), 0);
  first.sizes.at(0) = 1;
  Plan plan{{*self, only, *to}, {}};
  plan.run = [self = *self, first, numbers, to = *to] {
    const int64_t bytes = item_bytes(self.dtype), count = self.sizes[0], step = self.strides[0] * bytes;
    const Loader<int64_t> number = loader<int64_t>(numbers.dtype);
    const std::array<Operand, 3> operands{spread(to, to.sizes), spread(first, to.sizes), spread(numbers, to.sizes)};
    strided_loop(to.sizes, operands, [&](const auto& at) {
      const int64_t row = number(at[2]);
      if (row < -count || row >= count)
        throw Error(ACL_ERROR_INVALID_PARAM,
                    "index " + std::to_string(row) + " is out of bounds for " + std::to_string(count));
      std::memcpy(at[0], at[1] + (row < 0 ? row + count : row) * step, static_cast<size_t>(bytes));
    });
  };
  return plan;
}

Plan concatenate(const aclTensorList* list, int64_t dim, const aclTensor* to) {
  const auto axis = static_cast<size_t>(dim < 0 ? dim + static_cast<int64_t>(to->sizes.size()) : dim);
  const int64_t step = to->strides.at(axis) * item_bytes(to->dtype);
  std::vector<Plan> copies;
  Plan plan{{*to}, {}};
  aclTensor part = *to;
  for (const aclTensor& from : list->tensors) {
    plan.tensors.push_back(from);
    if (from.sizes == Sizes{0}) continue;  // torch lets an empty vector be concatenated with any shape
    part.sizes[axis] = from.sizes.at(axis);
    copies.push_back(copy(part, from));
    part.first += step * part.sizes[axis];
  }
  plan.run = [copies] {
    for (const Plan& copy : copies) copy.run();
  };
  return plan;
}

Plan stack(const aclTensorList* list, int64_t dim, const aclTensor* to) {
  const int64_t axis = dim < 0 ? dim + static_cast<int64_t>(to->sizes.size()) : dim;
  aclTensorList widened = *list;
  for (aclTensor& tensor : widened.tensors) {
    tensor.sizes.insert(tensor.sizes.begin() + axis, 1);
    tensor.strides.insert(tensor.strides.begin() + axis, 0);
  }
  return concatenate(&widened, axis, to);
}

}  // namespace

using Tensor = const aclTensor*;

ACLNN_OPERATOR(InplaceCopy, (Tensor self, Tensor from), copy(*self, *from))
ACLNN_OPERATOR(InplaceFillTensor, (Tensor self, Tensor value), copy(*self, *value))
ACLNN_OPERATOR(Cast, (Tensor self, aclDataType, Tensor to), copy(*to, *self))
ACLNN_OPERATOR(Index, (Tensor self, const aclTensorList* indices, Tensor to), index(self, indices, to))
ACLNN_OPERATOR(Cat, (const aclTensorList* tensors, int64_t dim, Tensor to), concatenate(tensors, dim, to))
ACLNN_OPERATOR(Stack, (const aclTensorList* tensors, int64_t dim, Tensor to), stack(tensors, dim, to))
ACLNN_OPERATOR(MaskedSelect, (Tensor self, Tensor mask, aclTensor* to), masked_select(self, mask, to))

}  // namespace virtual_cann

// The caller frees `sizes` with delete[].
extern "C" int aclGetViewShape(const aclTensor* tensor, int64_t** sizes, uint64_t* dims) {
  *dims = tensor->sizes.size();
  *sizes = new int64_t[tensor->sizes.size()];
  std::copy(tensor->sizes.begin(), tensor->sizes.end(), *sizes);
  return 0;
}
