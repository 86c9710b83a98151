// SPDX-License-Identifier: Apache-2.0
// How forward is cut into launches, units and tiles. Pure arithmetic: no torch, no CANN, no state.
#pragma once

#include <cstdint>

#include "../ascendc/ce_tiling.h"

namespace npu_ce {

struct NpuLimits {
  uint32_t cores;     // vector cores of the device
  uint32_t ub_bytes;  // of a core that a kernel may use: 196,608 less the system's 256 and the compiler's 8 KiB
};

// `problem` and `outputs` say what is asked for; of their pointers only whether they are null matters. Everything but
// the numbers of blocks is the same for every number of cores.
CeForwardPlan plan_forward(const CeProblem& problem, const CeForwardOutputs& outputs, const NpuLimits& limits);

}  // namespace npu_ce
