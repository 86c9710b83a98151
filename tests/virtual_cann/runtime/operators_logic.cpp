// SPDX-License-Identifier: Apache-2.0
// Comparisons, logic and the like, among them the operators with which torch prints a tensor.
#include <cmath>

#include "operators.h"

namespace virtual_cann {
namespace {

template <class Relation>
Plan compare(Relation holds, const aclTensor* self, const aclTensor* other, const aclTensor* to) {
  return elementwise([holds](auto a, auto b) { return holds(a, b); }, to, self, other);
}

template <class Relation>
Plan compare(Relation holds, const aclTensor* self, const aclScalar* other, const aclTensor* to) {
  return elementwise(
      [holds, b = *other](auto a) {
        // torch compares integers with a floating scalar such as 0.5 as floating numbers.
        if (std::is_integral_v<decltype(a)> && b.floating()) return holds(double(a), b.real);
        return holds(a, b.as<decltype(a)>());
      },
      to, self);
}

constexpr auto kEqual = [](auto a, auto b) { return a == b; };
constexpr auto kUnequal = [](auto a, auto b) { return a != b; };
constexpr auto kGreater = [](auto a, auto b) { return a > b; };
constexpr auto kGreaterOrEqual = [](auto a, auto b) { return a >= b; };
constexpr auto kLess = [](auto a, auto b) { return a < b; };
constexpr auto kLessOrEqual = [](auto a, auto b) { return a <= b; };

void check_integers(const aclTensor* tensor) {
  if (is_floating(tensor->dtype)) throw Error(ACL_ERROR_INVALID_PARAM, "expected integers or bool, got floating ones");
}

Plan bitwise_and(const aclTensor* self, const aclTensor* other, const aclTensor* to) {
  check_integers(to);
  return elementwise([](auto a, auto b) { return int64_t(a) & int64_t(b); }, to, self, other);
}

Plan bitwise_and(const aclTensor* self, const aclScalar* other, const aclTensor* to) {
  check_integers(to);
  return elementwise([b = *other](auto a) { return int64_t(a) & b.as<int64_t>(); }, to, self);
}

}  // namespace

using Tensor = const aclTensor*;
using Scalar = const aclScalar*;

ACLNN_OPERATOR(EqTensor, (Tensor self, Tensor other, Tensor to), compare(kEqual, self, other, to))
ACLNN_OPERATOR(EqScalar, (Tensor self, Scalar other, Tensor to), compare(kEqual, self, other, to))
ACLNN_OPERATOR(NeTensor, (Tensor self, Tensor other, Tensor to), compare(kUnequal, self, other, to))
ACLNN_OPERATOR(NeScalar, (Tensor self, Scalar other, Tensor to), compare(kUnequal, self, other, to))
ACLNN_OPERATOR(GtTensor, (Tensor self, Tensor other, Tensor to), compare(kGreater, self, other, to))
ACLNN_OPERATOR(GtScalar, (Tensor self, Scalar other, Tensor to), compare(kGreater, self, other, to))
ACLNN_OPERATOR(GeTensor, (Tensor self, Tensor other, Tensor to), compare(kGreaterOrEqual, self, other, to))
ACLNN_OPERATOR(GeScalar, (Tensor self, Scalar other, Tensor to), compare(kGreaterOrEqual, self, other, to))
ACLNN_OPERATOR(LtTensor, (Tensor self, Tensor other, Tensor to), compare(kLess, self, other, to))
ACLNN_OPERATOR(LtScalar, (Tensor self, Scalar other, Tensor to), compare(kLess, self, other, to))
ACLNN_OPERATOR(LeTensor, (Tensor self, Tensor other, Tensor to), compare(kLessOrEqual, self, other, to))
ACLNN_OPERATOR(LeScalar, (Tensor self, Scalar other, Tensor to), compare(kLessOrEqual, self, other, to))
ACLNN_OPERATOR(LogicalAnd, (Tensor self, Tensor other, Tensor to),
               elementwise([](auto a, auto b) { return a != 0 && b != 0; }, to, self, other))
ACLNN_OPERATOR(BitwiseAndTensor, (Tensor self, Tensor other, Tensor to), bitwise_and(self, other, to))
ACLNN_OPERATOR(BitwiseAndScalar, (Tensor self, Scalar other, Tensor to), bitwise_and(self, other, to))
ACLNN_OPERATOR(SWhere, (Tensor condition, Tensor self, Tensor other, Tensor to),
               elementwise([](auto chosen, auto a, auto b) { return chosen != 0 ? a : b; }, to, condition, self, other))
ACLNN_OPERATOR(InplaceMaskedFillScalar, (Tensor self, Tensor mask, Scalar value),
               elementwise([v = *value](auto a, auto chosen) { return chosen != 0 ? v.as<decltype(a)>() : a; }, self,
                           self, mask))
ACLNN_OPERATOR(IsFinite, (Tensor self, Tensor to),
               elementwise([](auto a) { return std::isfinite(double(a)); }, to, self))
ACLNN_OPERATOR(Abs, (Tensor self, Tensor to), elementwise([](auto a) { return std::abs(a); }, to, self))
ACLNN_OPERATOR(Ceil, (Tensor self, Tensor to), elementwise([](auto a) { return std::ceil(a); }, to, self))

}  // namespace virtual_cann
