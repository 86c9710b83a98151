// SPDX-License-Identifier: Apache-2.0
// Sums over dimensions, and products of matrices.
#include "operators.h"

namespace virtual_cann {
namespace {

// The strides that lay `sizes` out densely, with 0 for the dimensions that are summed.
std::vector<int64_t> dense_strides(const Sizes& sizes, const std::vector<bool>& summed, int64_t item) {
  std::vector<int64_t> strides(sizes.size(), 0);
  for (size_t dim = sizes.size(); dim-- > 0;) {
    if (summed[dim]) continue;
    strides[dim] = item;
    item *= sizes[dim];
  }
  return strides;
}

// As aclnn: no dimensions stands for all of them.
std::vector<bool> marked(const aclIntArray& dims, size_t count) {
  std::vector<bool> marks(count, dims.values.empty());
  for (int64_t dim : dims.values) marks.at(static_cast<size_t>(dim < 0 ? dim + static_cast<int64_t>(count) : dim)) = true;
  return marks;
}

// Adds in double, or in int64, and rounds once. The result is dense in memory, as torch_npu allocates it, or strided:
// what it holds in order of its indices is what is left of self in that order, kept dimensions or not.
Plan sum(const aclTensor* self, const aclIntArray* dims, const aclTensor* to, bool mean) {
  return {{*self, *to}, [self = *self, summed = marked(*dims, self->sizes.size()), to = *to, mean] {
            with_compute_type({self.dtype, to.dtype}, [&](auto example) {
              using Narrow = decltype(example);
              using T = std::conditional_t<std::is_integral_v<Narrow>, int64_t, double>;
              std::vector<T> sums(static_cast<size_t>(to.count()), T(0));
              if (sums.empty()) return;
              const Loader<T> load = loader<T>(self.dtype);
              Operand results{reinterpret_cast<uint8_t*>(sums.data()), dense_strides(self.sizes, summed, sizeof(T))};
              strided_loop(self.sizes, std::array<Operand, 2>{spread(self, self.sizes), results},
                           [&](const auto& at) { *reinterpret_cast<T*>(at[1]) += load(at[0]); });
              const T divisor = mean ? T(self.count()) / T(to.count()) : T(1);
              const Storer<T> store = storer<T>(to.dtype);
              const T* next = sums.data();
              strided_loop(to.sizes, std::array<Operand, 1>{spread(to, to.sizes)}, [&](const auto& at) {
                store(at[0], mean ? *next / divisor : *next);
                ++next;
              });
            });
          }};
}

struct Matrix {
  int64_t rows, columns;
  std::vector<float> values;  // row by row
};

Matrix dense(const aclTensor& tensor) {
  Matrix matrix{tensor.sizes[0], tensor.sizes[1], {}};
  matrix.values.reserve(static_cast<size_t>(tensor.count()));
  const Loader<float> load = loader<float>(tensor.dtype);
  strided_loop(tensor.sizes, std::array<Operand, 1>{spread(tensor, tensor.sizes)},
               [&](const auto& at) { matrix.values.push_back(load(at[0])); });
  return matrix;
}

// Adds in fp32, as the cube unit does, whatever cubeMathType allows it to do less exactly.
Matrix product(const Matrix& left, const Matrix& right) {
  Matrix result{left.rows, right.columns, std::vector<float>(static_cast<size_t>(left.rows * right.columns), 0.0f)};
  for (int64_t row = 0; row < left.rows; ++row) {
    float* to = result.values.data() + row * right.columns;
    for (int64_t inner = 0; inner < left.columns; ++inner) {
      const float factor = left.values[static_cast<size_t>(row * left.columns + inner)];
      const float* from = right.values.data() + inner * right.columns;
      for (int64_t column = 0; column < right.columns; ++column) to[column] += factor * from[column];
    }
  }
  return result;
}

void check_matrix(const aclTensor* tensor) {
  if (tensor->sizes.size() != 2 || !is_floating(tensor->dtype) || tensor->dtype == ACL_DOUBLE) {
    throw Error(ACL_ERROR_API_NOT_SUPPORT,
                "the virtual CANN multiplies matrices of two dimensions in fp32, fp16 and bf16 only");
  }
}

// to = beta * added + alpha * left @ right; no `added`: 0.
Plan matrix_product(const aclTensor* left, const aclTensor* right, const aclTensor* to, const aclTensor* added = nullptr,
                    const aclScalar* beta = nullptr, const aclScalar* alpha = nullptr) {
  for (const aclTensor* tensor : {left, right, to}) check_matrix(tensor);
  if (left->sizes[1] != right->sizes[0] || left->sizes[0] != to->sizes[0] || right->sizes[1] != to->sizes[1]) {
    throw Error(ACL_ERROR_INVALID_PARAM, "the shapes of the matrices do not fit each other");
  }
  std::vector<aclTensor> tensors{*left, *right, *to};
  if (added != nullptr) tensors.push_back(*added);
  const float k = alpha == nullptr ? 1.0f : alpha->as<float>();
  const float b = beta == nullptr ? 0.0f : beta->as<float>();
  return {tensors, [tensors, k, b] {
            const aclTensor& to = tensors[2];
            Matrix result = product(dense(tensors[0]), dense(tensors[1]));
            const aclTensor& added = b == 0.0f ? to : tensors[3];
            const Loader<float> load = loader<float>(added.dtype);
            const Storer<float> store = storer<float>(to.dtype);
            const float* next = result.values.data();
            strided_loop(to.sizes, std::array<Operand, 2>{spread(to, to.sizes), spread(added, to.sizes)},
                         [&](const auto& at) {
                           store(at[0], b == 0.0f ? k * *next : b * load(at[1]) + k * *next);
                           ++next;
                         });
          }};
}

}  // namespace

using Tensor = const aclTensor*;
using Scalar = const aclScalar*;
using Ints = const aclIntArray*;

ACLNN_OPERATOR(ReduceSum, (Tensor self, Ints dims, bool, aclDataType, Tensor to), sum(self, dims, to, false))
ACLNN_OPERATOR(Mean, (Tensor self, Ints dims, bool, aclDataType, Tensor to), sum(self, dims, to, true))
ACLNN_OPERATOR(Mm, (Tensor left, Tensor right, Tensor to, int8_t), matrix_product(left, right, to))
ACLNN_OPERATOR(Matmul, (Tensor left, Tensor right, Tensor to, int8_t), matrix_product(left, right, to))
ACLNN_OPERATOR(Addmm, (Tensor added, Tensor left, Tensor right, Scalar beta, Scalar alpha, Tensor to, int8_t),
               matrix_product(left, right, to, added, beta, alpha))
ACLNN_OPERATOR(InplaceAddmm, (Tensor self, Tensor left, Tensor right, Scalar beta, Scalar alpha, int8_t),
               matrix_product(left, right, self, self, beta, alpha))

}  // namespace virtual_cann
