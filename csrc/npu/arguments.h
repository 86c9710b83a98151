// SPDX-License-Identifier: Apache-2.0
// Turns the plain structs of problem.h into those of the NPU's kernels, with contiguous targets and values
// per row.
#pragma once

#include <vector>

#include "../../ascendc/abi/backward.h"
#include "../../ascendc/abi/forward.h"
#include "glue/arguments.h"

namespace npu_ce {

// Keeps the copies of tensors alive until the kernels that read them are enqueued.
using Copies = std::vector<Tensor>;

// These throw std::runtime_error for what only the NPU's kernels do not take: float64, planar input, and 2^31 or more
// classes.
CeProblem npu_problem(const LossTensors& tensors, const Problem& problem, Copies& copies);
CeForwardOutputs npu_outputs(const ForwardOutputs& outputs);
CeGradients npu_gradients(const BackwardArguments& arguments, const Gradients& gradients, Copies& copies);

}  // namespace npu_ce
