// SPDX-License-Identifier: Apache-2.0
// The two kernels for one dtype, and the choice between sharing rows and sharing columns among threads.
#pragma once

#include "backward.h"
#include "by_dtype.h"
#include "forward.h"

namespace npu_ce {

template <class Kernel>
void run(Kernel& kernel, const Problem& problem, const Parallel& parallel) {
  const bool few_rows = problem.rows < 4 * parallel.threads;
  if (problem.rows * problem.classes <= kSerialElems || parallel.threads == 1) {
    kernel.run_rows(0, problem.rows);
  } else if (few_rows && problem.classes > kChunkElems) {
    kernel.run_columns(parallel);
  } else {
    const int64_t grain_rows = std::max<int64_t>(1, kSerialElems / 2 / problem.classes);
    parallel_for(parallel, problem.rows, grain_rows, [&](int64_t begin, int64_t end) { kernel.run_rows(begin, end); });
  }
}

template <class T>
void forward_of(const Problem& problem, const ForwardOutputs& outputs, const Parallel& parallel) {
  Forward<T> kernel(problem, outputs);
  run(kernel, problem, parallel);
  kernel.reduce();
}

template <class T>
void backward_of(const Problem& problem, const Gradients& gradients, const Parallel& parallel) {
  const Backward<T> kernel(problem, gradients);
  run(kernel, problem, parallel);
}

}  // namespace npu_ce
