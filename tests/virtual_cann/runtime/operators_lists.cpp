// SPDX-License-Identifier: Apache-2.0
// Operators on lists of tensors, as torch's optimisers use them: the single-tensor operator on each tensor.
#include "operators.h"

namespace virtual_cann {
namespace {

template <class PlanOne>
Plan for_each(const aclTensorList* to, PlanOne&& plan_one) {
  std::vector<Plan> plans;
  Plan all;
  for (size_t i = 0; i < to->tensors.size(); ++i) {
    plans.push_back(plan_one(i));
    all.tensors.insert(all.tensors.end(), plans.back().tensors.begin(), plans.back().tensors.end());
  }
  all.run = [plans] {
    for (const Plan& plan : plans) plan.run();
  };
  return all;
}

Plan add(const aclTensorList* self, const aclTensorList* other, const aclScalar* alpha, const aclTensorList* to) {
  return for_each(to, [&](size_t i) {
    return elementwise([k = *alpha](auto a, auto b) { return a + k.as<decltype(b)>() * b; }, &to->tensors[i],
                       &self->tensors[i], &other->tensors[i]);
  });
}

Plan multiply(const aclTensorList* self, const aclScalar* other, const aclTensorList* to) {
  return for_each(to, [&](size_t i) {
    return elementwise([k = *other](auto a) { return a * k.as<decltype(a)>(); }, &to->tensors[i], &self->tensors[i]);
  });
}

Plan zero(const aclTensorList* to) {
  return for_each(to, [&](size_t i) { return elementwise([](auto zero) { return zero; }, &to->tensors[i]); });
}

}  // namespace

using List = const aclTensorList*;
using Scalar = const aclScalar*;

ACLNN_OPERATOR(ForeachAddListV2, (List self, List other, Scalar alpha, List to), add(self, other, alpha, to))
ACLNN_OPERATOR(ForeachMulScalarV2, (List self, Scalar other, List to), multiply(self, other, to))
ACLNN_OPERATOR(ForeachZeroInplace, (List self), zero(self))

}  // namespace virtual_cann
