// SPDX-License-Identifier: Apache-2.0
// A C function, for ctypes, that makes the plan of backward.
#include "npu/backward_plan.cpp"

extern "C" void ce_backward_plan(const CeProblem* problem, const CeGradients* gradients, uint32_t cores,
                                 uint32_t ub_bytes, CeBackwardPlan* plan) {
  *plan = npu_ce::plan_backward(*problem, *gradients, {cores, ub_bytes});
}
