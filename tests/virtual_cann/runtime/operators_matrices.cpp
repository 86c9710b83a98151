// SPDX-License-Identifier: Apache-2.0
// Products of matrices, also batched.
#include "operators.h"

namespace virtual_cann {
namespace {

struct Matrix {
  int64_t rows, columns;
  std::vector<float> values;  // row by row
};

aclTensor last_two(const aclTensor& tensor, uint8_t* first) {
  return {{tensor.sizes.end() - 2, tensor.sizes.end()},
          {tensor.strides.end() - 2, tensor.strides.end()},
          tensor.dtype,
          first};
}

aclTensor all_but_two(const aclTensor& tensor) {
  return {{tensor.sizes.begin(), tensor.sizes.end() - 2},
          {tensor.strides.begin(), tensor.strides.end() - 2},
          tensor.dtype,
          tensor.first};
}

Matrix dense(const aclTensor& tensor) {
  Matrix matrix{tensor.sizes[0], tensor.sizes[1], {}};
  matrix.values.reserve(static_cast<size_t>(tensor.count()));
  const Loader<float> load = loader<float>(tensor.dtype);
  strided_loop(tensor.sizes, std::array<Operand, 1>{spread(tensor, tensor.sizes)},
               [&](const auto& at) { matrix.values.push_back(load(at[0])); });
  return matrix;
}

// Sums in fp32, as the cube unit does, even where cubeMathType permits less. O3 because -O2 does not vectorise this
// loop, the only one here whose time a test notices.
[[gnu::optimize("O3")]] Matrix product(const Matrix& left, const Matrix& right) {
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

void widen(aclTensor* tensor, size_t dim) {
  tensor->sizes.insert(tensor->sizes.begin() + static_cast<std::ptrdiff_t>(dim), 1);
  tensor->strides.insert(tensor->strides.begin() + static_cast<std::ptrdiff_t>(dim), 0);
}

// A vector on the left becomes a row, one on the right a column; the result lacks that dimension.
void make_matrices(aclTensor* left, aclTensor* right, aclTensor* to) {
  const bool row = left->sizes.size() == 1, column = right->sizes.size() == 1;
  if (row) widen(left, 0);
  if (row) widen(to, to->sizes.size() - (column ? 0 : 1));
  if (column) widen(right, 1);
  if (column) widen(to, to->sizes.size());
}

void check(const aclTensor& left, const aclTensor& right, const aclTensor& to) {
  for (const aclTensor* tensor : {&left, &right, &to}) {
    if (!is_floating(tensor->dtype) || tensor->dtype == ACL_DOUBLE) {
      throw Error(ACL_ERROR_API_NOT_SUPPORT, "the virtual CANN multiplies matrices of fp32, fp16 and bf16 only");
    }
    if (tensor->sizes.size() < 2) throw Error(ACL_ERROR_INVALID_PARAM, "expected matrices, got a scalar");
  }
  if (left.sizes.back() != right.sizes.end()[-2] || left.sizes.end()[-2] != to.sizes.end()[-2] ||
      right.sizes.back() != to.sizes.back()) {
    throw Error(ACL_ERROR_INVALID_PARAM, "the shapes of the matrices do not fit each other");
  }
}

// to = alpha * left @ right
Plan matrix_product(const aclTensor* left_given, const aclTensor* right_given, const aclTensor* to_given,
                    float alpha = 1) {
  aclTensor left = *left_given, right = *right_given, to = *to_given;
  make_matrices(&left, &right, &to);
  check(left, right, to);
  return {{left, right, to}, [left, right, to, alpha] {
            const Sizes batch(to.sizes.begin(), to.sizes.end() - 2);
            const std::array<Operand, 3> operands{spread(all_but_two(to), batch), spread(all_but_two(left), batch),
                                                  spread(all_but_two(right), batch)};
            const Storer<float> store = storer<float>(to.dtype);
            strided_loop(batch, operands, [&](const auto& at) {
              Matrix result = product(dense(last_two(left, at[1])), dense(last_two(right, at[2])));
              const float* next = result.values.data();
              const aclTensor one = last_two(to, at[0]);
              strided_loop(one.sizes, std::array<Operand, 1>{spread(one, one.sizes)},
                           [&](const auto& element) { store(element[0], alpha * *next++); });
            });
          }};
}

// to = beta * added + alpha * left @ right. The product stays in fp32 until the sum, so it is rounded only once.
Plan sum_with_product(const aclTensor* added, const aclTensor* left, const aclTensor* right, const aclScalar* beta,
                      const aclScalar* alpha, const aclTensor* to) {
  const float b = beta->as<float>(), a = alpha->as<float>();
  Plan product = matrix_product(left, right, to, a);
  Plan plan{product.tensors, {}};
  plan.tensors.push_back(*added);
  plan.run = [added = *added, left = *left, right = *right, to = *to, a, b] {
    std::vector<float> exact(static_cast<size_t>(to.count()));
    aclTensor dense_product{to.sizes, Sizes(to.sizes.size(), 1), ACL_FLOAT, reinterpret_cast<uint8_t*>(exact.data())};
    for (size_t dim = to.sizes.size() - 1; dim-- > 0;) {
      dense_product.strides[dim] = dense_product.strides[dim + 1] * to.sizes[dim + 1];
    }
    matrix_product(&left, &right, &dense_product, a).run();
    auto add = [b](auto term, auto value) { return b == 0 ? term : term + decltype(term)(b) * value; };
    elementwise(add, &to, &dense_product, &added).run();
  };
  return plan;
}

}  // namespace

using Tensor = const aclTensor*;
using Scalar = const aclScalar*;

ACLNN_OPERATOR(Mm, (Tensor left, Tensor right, Tensor to, int8_t), matrix_product(left, right, to))
ACLNN_OPERATOR(Matmul, (Tensor left, Tensor right, Tensor to, int8_t), matrix_product(left, right, to))
ACLNN_OPERATOR(BatchMatMul, (Tensor left, Tensor right, Tensor to, int8_t), matrix_product(left, right, to))
ACLNN_OPERATOR(Addmm, (Tensor added, Tensor left, Tensor right, Scalar beta, Scalar alpha, Tensor to, int8_t),
               sum_with_product(added, left, right, beta, alpha, to))
ACLNN_OPERATOR(InplaceAddmm, (Tensor self, Tensor left, Tensor right, Scalar beta, Scalar alpha, int8_t),
               sum_with_product(self, left, right, beta, alpha, self))

}  // namespace virtual_cann
