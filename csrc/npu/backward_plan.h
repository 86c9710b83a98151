// SPDX-License-Identifier: Apache-2.0
// Cuts backward into pieces for the cores, and tiles for UB. Knows no torch and no CANN.
#pragma once

#include "../../ascendc/abi/backward.h"
#include "plan.h"

namespace npu_ce {

// Of the problem and the gradients, only sizes, dtypes, options and which pointers are null matter.
CeBackwardPlan plan_backward(const CeProblem& problem, const CeGradients& gradients, const NpuLimits& limits);

}  // namespace npu_ce
