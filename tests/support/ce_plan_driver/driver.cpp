// SPDX-License-Identifier: Apache-2.0
// A C function, for ctypes, that makes the plan of forward.
#include "npu/forward_plan.h"

extern "C" void plan_forward(const CeProblem* problem, const CeForwardOutputs* outputs, uint32_t cores,
                             uint32_t ub_bytes, CeForwardPlan* plan) {
  *plan = npu_ce::plan_forward(*problem, *outputs, {cores, ub_bytes});
}
