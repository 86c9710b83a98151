// SPDX-License-Identifier: Apache-2.0
// The launches of forward, which npu_ce_forward puts in order. Each is in the file of its kernel: a launch needs the
// kernel's definition. They are called within one library only, so they are in its namespace and not extern "C".
#pragma once

#include "../abi/launch.h"

namespace npu_ce {

void launch_merge(const CeProblem& problem, const CeForwardOutputs& outputs, const CeForwardPlan& plan, void* stream);
void launch_log_prob(const CeProblem& problem, const CeForwardOutputs& outputs, const CeForwardPlan& plan,
                     void* stream);
void launch_reduce(const CeProblem& problem, const CeForwardOutputs& outputs, const CeForwardPlan& plan, void* stream);

}  // namespace npu_ce
