// SPDX-License-Identifier: Apache-2.0
// How forward is cut into launches, units and tiles. Pure arithmetic: no torch, no CANN, no state.
#pragma once

#include "../../ascendc/abi/forward.h"
#include "plan.h"

namespace npu_ce {

// `problem` and `outputs` say what is asked for; of their pointers only whether they are null matters. Everything but
// the numbers of blocks is the same for every number of cores.
CeForwardPlan plan_forward(const CeProblem& problem, const CeForwardOutputs& outputs, const NpuLimits& limits);

}  // namespace npu_ce
