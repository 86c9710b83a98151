// SPDX-License-Identifier: Apache-2.0
// The plan by a C call, for ctypes.
#include "npu/forward_plan.h"

extern "C" void plan_forward(const CeProblem* problem, const CeForwardOutputs* outputs, uint32_t cores,
                             uint32_t ub_bytes, CeForwardPlan* plan) {
  *plan = npu_ce::plan_forward(*problem, *outputs, {cores, ub_bytes});
}
