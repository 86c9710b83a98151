// SPDX-License-Identifier: Apache-2.0
// The plain structs of the CPU's kernels to those of the NPU's, which want more of what they read: targets and values
// per row lie side by side.
#pragma once

#include <vector>

#include "../../ascendc/abi/backward.h"
#include "../../ascendc/abi/forward.h"
#include "glue/arguments.h"

namespace npu_ce {

// Keeps the copies that were needed until their kernels are enqueued.
using Copies = std::vector<Tensor>;

// These throw std::runtime_error for what only the NPU's kernels do not take: float64, and sizes of 2^31 classes.
CeProblem npu_problem(const LossTensors& tensors, const Problem& problem, Copies& copies);
CeForwardOutputs npu_outputs(const ForwardOutputs& outputs);
CeGradients npu_gradients(const BackwardArguments& arguments, const Gradients& gradients, Copies& copies);

}  // namespace npu_ce
