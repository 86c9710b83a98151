// SPDX-License-Identifier: Apache-2.0
// The kernels for one dtype, and how their work is shared among threads: rows, columns, or tiles of planar logits.
#pragma once

#include "backward.h"
#include "by_dtype.h"
#include "forward.h"
#include "planar_backward.h"
#include "planar_forward.h"

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

template <class Kernel>
void run_planar(Kernel& kernel, const Problem& problem, const Parallel& parallel) {
  if (problem.rows * problem.classes <= kSerialElems) return kernel.run_tiles(0, kernel.tiles());
  const int64_t grain_tiles = std::max<int64_t>(1, kSerialElems / 2 / problem.classes / kTilePositions);
  parallel_for(parallel, kernel.tiles(), grain_tiles,
               [&](int64_t begin, int64_t end) { kernel.run_tiles(begin, end); });
}

template <class T>
void forward_of(const Problem& problem, const ForwardOutputs& outputs, const Parallel& parallel) {
  if (problem.layout.is_planar()) {
    PlanarForward<T> kernel(problem, outputs);
    run_planar(kernel, problem, parallel);
    kernel.reduce();
    return;
  }
  Forward<T> kernel(problem, outputs);
  run(kernel, problem, parallel);
  kernel.reduce();
}

template <class T>
void backward_of(const Problem& problem, const Gradients& gradients, const Parallel& parallel) {
  if (problem.layout.is_planar()) {
    const PlanarBackward<T> kernel(problem, gradients);
    run_planar(kernel, problem, parallel);
    return;
  }
  const Backward<T> kernel(problem, gradients);
  run(kernel, problem, parallel);
}

}  // namespace npu_ce
