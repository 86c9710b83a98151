// SPDX-License-Identifier: Apache-2.0
// The operators of a GradScaler: unscaling with the check for infinities and NaN, and the scale's update. Flags and
// scales are one float32 each.
#include <cmath>

#include "operators.h"

namespace virtual_cann {
namespace {

float& one_float(const aclTensor& tensor) {
  if (tensor.dtype != ACL_FLOAT || tensor.count() != 1) {
    throw Error(ACL_ERROR_INVALID_PARAM, "a scale, its inverse and found_inf are one float32 each");
  }
  return *reinterpret_cast<float*>(tensor.first);
}

// Finite gradients leave found_inf unchanged: torch calls this once for each device and dtype.
Plan unscale(const aclTensorList* gradients, const aclTensor* found_inf, const aclTensor* inverse_scale) {
  Plan plan{gradients->tensors, {}};
  plan.tensors.push_back(*found_inf);
  plan.tensors.push_back(*inverse_scale);
  plan.run = [gradients = gradients->tensors, found_inf = *found_inf, inverse_scale = *inverse_scale] {
    float& found = one_float(found_inf);
    const float factor = one_float(inverse_scale);
    for (const aclTensor& gradient : gradients) {
      const Loader<float> load = loader<float>(gradient.dtype);
      const Storer<float> store = storer<float>(gradient.dtype);
      strided_loop(gradient.sizes, std::array<Operand, 1>{spread(gradient, gradient.sizes)}, [&](const auto& at) {
        const float value = load(at[0]);
        if (!std::isfinite(value)) found = 1;
        store(at[0], value * factor);
      });
    }
  };
  return plan;
}

Plan update_scale(const aclTensor* scale, const aclTensor* growth_tracker, const aclTensor* found_inf,
                  double growth_factor, double backoff_factor, int64_t growth_interval, const aclTensor* to_scale,
                  const aclTensor* to_tracker) {
  if (growth_tracker->dtype != ACL_INT32 || to_tracker->dtype != ACL_INT32) {
    throw Error(ACL_ERROR_INVALID_PARAM, "growth_tracker is one int32");
  }
  Plan plan{{*scale, *growth_tracker, *found_inf, *to_scale, *to_tracker}, {}};
  plan.run = [=, scale = *scale, tracker = *growth_tracker, found_inf = *found_inf, to_scale = *to_scale,
              to_tracker = *to_tracker] {
    float value = one_float(scale);
    int32_t steps = *reinterpret_cast<const int32_t*>(tracker.first) + 1;
    if (one_float(found_inf) != 0) {
      value *= static_cast<float>(backoff_factor);
      steps = 0;
    } else if (steps == growth_interval) {
      const float grown = value * static_cast<float>(growth_factor);
      value = std::isfinite(grown) ? grown : value;
      steps = 0;
    }
    one_float(to_scale) = value;
    *reinterpret_cast<int32_t*>(to_tracker.first) = steps;
  };
  return plan;
}

}  // namespace

using List = const aclTensorList*;
using Tensor = const aclTensor*;

ACLNN_OPERATOR(ForeachNonFiniteCheckAndUnscale, (List gradients, Tensor found_inf, Tensor inverse_scale),
               unscale(gradients, found_inf, inverse_scale))
ACLNN_OPERATOR(AmpUpdateScale,
               (Tensor scale, Tensor growth_tracker, Tensor found_inf, double growth_factor, double backoff_factor,
                int64_t growth_interval, Tensor to_scale, Tensor to_tracker),
               update_scale(scale, growth_tracker, found_inf, growth_factor, backoff_factor, growth_interval, to_scale,
                            to_tracker))

}  // namespace virtual_cann
