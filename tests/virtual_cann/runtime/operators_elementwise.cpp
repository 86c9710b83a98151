// SPDX-License-Identifier: Apache-2.0
// Fills and arithmetic.
#include <algorithm>
#include <cmath>

#include "operators.h"

namespace virtual_cann {
namespace {

Plan fill(const aclTensor* self, const aclScalar* value) {
  return elementwise([v = *value](auto zero) { return v.as<decltype(zero)>(); }, self);
}

Plan fill(const aclTensor* self, int64_t value) {
  aclScalar scalar{ACL_INT64, 0, value};
  return fill(self, &scalar);
}

Plan add(const aclTensor* self, const aclTensor* other, const aclScalar* alpha, const aclTensor* to) {
  return elementwise([k = *alpha](auto a, auto b) { return a + k.as<decltype(b)>() * b; }, to, self, other);
}

Plan add(const aclTensor* self, const aclScalar* other, const aclScalar* alpha, const aclTensor* to) {
  return elementwise([k = *alpha, b = *other](auto a) { return a + k.as<decltype(a)>() * b.as<decltype(a)>(); }, to,
                     self);
}

Plan subtract(const aclTensor* self, const aclTensor* other, const aclScalar* alpha, const aclTensor* to) {
  return elementwise([k = *alpha](auto a, auto b) { return a - k.as<decltype(b)>() * b; }, to, self, other);
}

Plan subtract(const aclTensor* self, const aclScalar* other, const aclScalar* alpha, const aclTensor* to) {
  return elementwise([k = *alpha, b = *other](auto a) { return a - k.as<decltype(a)>() * b.as<decltype(a)>(); }, to,
                     self);
}

Plan multiply(const aclTensor* self, const aclTensor* other, const aclTensor* to) {
  return elementwise([](auto a, auto b) { return a * b; }, to, self, other);
}

Plan multiply(const aclTensor* self, const aclScalar* other, const aclTensor* to) {
  return elementwise([b = *other](auto a) { return a * b.as<decltype(a)>(); }, to, self);
}

// torch promotes quotients to a floating dtype; an integer quotient would need a rounding mode.
void check_quotient(const aclTensor* to) {
  if (!is_floating(to->dtype)) {
    throw Error(ACL_ERROR_API_NOT_SUPPORT, "the virtual CANN divides into a floating dtype only");
  }
}

Plan divide(const aclTensor* self, const aclTensor* other, const aclTensor* to) {
  check_quotient(to);
  return elementwise([](auto a, auto b) { return b == 0 && std::is_integral_v<decltype(b)> ? a : a / b; }, to, self,
                     other);
}

Plan divide(const aclTensor* self, const aclScalar* other, const aclTensor* to) {
  check_quotient(to);
  return elementwise(
      [b = *other](auto a) {
        auto divisor = b.as<decltype(a)>();
        return divisor == 0 && std::is_integral_v<decltype(a)> ? a : a / divisor;
      },
      to, self);
}

Plan log_add_exp(const aclTensor* self, const aclTensor* other, const aclTensor* to) {
  return elementwise(
      [](auto a, auto b) {
        const double larger = std::max(double(a), double(b)), smaller = std::min(double(a), double(b));
        return std::isinf(larger) ? larger : larger + std::log1p(std::exp(smaller - larger));
      },
      to, self, other);
}

Plan reciprocal(const aclTensor* self, const aclTensor* to) {
  check_quotient(to);
  return elementwise([](auto a) { return a == 0 && std::is_integral_v<decltype(a)> ? a : 1 / a; }, to, self);
}

}  // namespace

using Tensor = const aclTensor*;
using Scalar = const aclScalar*;

ACLNN_OPERATOR(InplaceZero, (Tensor self), fill(self, int64_t(0)))
ACLNN_OPERATOR(InplaceOne, (Tensor self), fill(self, int64_t(1)))
ACLNN_OPERATOR(InplaceFillScalar, (Tensor self, Scalar value), fill(self, value))
ACLNN_OPERATOR(Add, (Tensor self, Tensor other, Scalar alpha, Tensor to), add(self, other, alpha, to))
ACLNN_OPERATOR(Adds, (Tensor self, Scalar other, Scalar alpha, Tensor to), add(self, other, alpha, to))
ACLNN_OPERATOR(InplaceAdd, (Tensor self, Tensor other, Scalar alpha), add(self, other, alpha, self))
ACLNN_OPERATOR(InplaceAdds, (Tensor self, Scalar other, Scalar alpha), add(self, other, alpha, self))
ACLNN_OPERATOR(Sub, (Tensor self, Tensor other, Scalar alpha, Tensor to), subtract(self, other, alpha, to))
ACLNN_OPERATOR(Subs, (Tensor self, Scalar other, Scalar alpha, Tensor to), subtract(self, other, alpha, to))
ACLNN_OPERATOR(InplaceSub, (Tensor self, Tensor other, Scalar alpha), subtract(self, other, alpha, self))
ACLNN_OPERATOR(InplaceSubs, (Tensor self, Scalar other, Scalar alpha), subtract(self, other, alpha, self))
ACLNN_OPERATOR(Rsub, (Tensor self, Tensor other, Scalar alpha, Tensor to), subtract(other, self, alpha, to))
ACLNN_OPERATOR(Rsubs, (Tensor self, Scalar other, Scalar alpha, Tensor to),
               elementwise([k = *alpha, b = *other](auto a) { return b.as<decltype(a)>() - k.as<decltype(a)>() * a; },
                           to, self))
ACLNN_OPERATOR(Mul, (Tensor self, Tensor other, Tensor to), multiply(self, other, to))
ACLNN_OPERATOR(Muls, (Tensor self, Scalar other, Tensor to), multiply(self, other, to))
ACLNN_OPERATOR(InplaceMul, (Tensor self, Tensor other), multiply(self, other, self))
ACLNN_OPERATOR(InplaceMuls, (Tensor self, Scalar other), multiply(self, other, self))
ACLNN_OPERATOR(Div, (Tensor self, Tensor other, Tensor to), divide(self, other, to))
ACLNN_OPERATOR(Divs, (Tensor self, Scalar other, Tensor to), divide(self, other, to))
ACLNN_OPERATOR(InplaceDiv, (Tensor self, Tensor other), divide(self, other, self))
ACLNN_OPERATOR(InplaceDivs, (Tensor self, Scalar other), divide(self, other, self))
ACLNN_OPERATOR(Reciprocal, (Tensor self, Tensor to), reciprocal(self, to))
ACLNN_OPERATOR(Exp, (Tensor self, Tensor to), elementwise([](auto a) { return std::exp(a); }, to, self))
ACLNN_OPERATOR(Tanh, (Tensor self, Tensor to), elementwise([](auto a) { return std::tanh(a); }, to, self))
ACLNN_OPERATOR(LogAddExp, (Tensor self, Tensor other, Tensor to), log_add_exp(self, other, to))
ACLNN_OPERATOR(Neg, (Tensor self, Tensor to), elementwise([](auto a) { return -a; }, to, self))

}  // namespace virtual_cann
