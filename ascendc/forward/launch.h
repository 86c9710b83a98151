// SPDX-License-Identifier: Apache-2.0
// The launches of forward, which npu_ce_forward puts in order. Each is in the file of its kernel: a launch needs the
// kernel's definition. They are of one library's units, so their names are in its namespace.
#pragma once

#include "../abi/launch.h"

namespace npu_ce {

void launch_merge(const CeProblem& problem, const CeForwardOutputs& outputs, const CeForwardPlan& plan, void* stream);
void launch_log_prob(const CeProblem& problem, const CeForwardOutputs& outputs, const CeForwardPlan& plan,
                     void* stream);
void launch_reduce(const CeProblem& problem, const CeForwardOutputs& outputs, const CeForwardPlan& plan, void* stream);

}  // namespace npu_ce
