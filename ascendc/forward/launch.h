// SPDX-License-Identifier: Apache-2.0
// The launches of forward, which npu_ce_forward puts in order. Each is in the file of its kernel: a launch needs the
// kernel's definition.
#pragma once

#include "../abi/launch.h"

void launch_merge(const CeProblem& problem, const CeForwardOutputs& outputs, const CeForwardPlan& plan, void* stream);
void launch_log_prob(const CeProblem& problem, const CeForwardOutputs& outputs, const CeForwardPlan& plan,
                     void* stream);
void launch_reduce(const CeProblem& problem, const CeForwardOutputs& outputs, const CeForwardPlan& plan, void* stream);
