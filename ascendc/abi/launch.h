// SPDX-License-Identifier: Apache-2.0
// What the kernel library exports, for the host. Each call enqueues the launches of one plan on the stream, in order,
// and returns 0; launches report their errors at the stream's synchronisation.
#pragma once

#include "backward.h"
#include "forward.h"

extern "C" {

int npu_ce_forward(const CeProblem* problem, const CeForwardOutputs* outputs, const CeForwardPlan* plan, void* stream);
int npu_ce_backward(const CeProblem* problem, const CeGradients* gradients, const CeBackwardPlan* plan, void* stream);
}
