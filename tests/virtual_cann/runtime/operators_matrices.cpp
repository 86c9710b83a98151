// SPDX-License-Identifier: Apache-2.0
// Products of matrices.
#include "operators.h"

namespace virtual_cann {
namespace {

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
Plan matrix_product(const aclTensor* left, const aclTensor* right, const aclTensor* to,
                    const aclTensor* added = nullptr, const aclScalar* beta = nullptr,
                    const aclScalar* alpha = nullptr) {
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

ACLNN_OPERATOR(Mm, (Tensor left, Tensor right, Tensor to, int8_t), matrix_product(left, right, to))
ACLNN_OPERATOR(Matmul, (Tensor left, Tensor right, Tensor to, int8_t), matrix_product(left, right, to))
ACLNN_OPERATOR(Addmm, (Tensor added, Tensor left, Tensor right, Scalar beta, Scalar alpha, Tensor to, int8_t),
               matrix_product(left, right, to, added, beta, alpha))
ACLNN_OPERATOR(InplaceAddmm, (Tensor self, Tensor left, Tensor right, Scalar beta, Scalar alpha, int8_t),
               matrix_product(left, right, self, self, beta, alpha))

}  // namespace virtual_cann
