// SPDX-License-Identifier: Apache-2.0
// The kernels by dtype. Their definitions are in cpu/kernels/f32_f64.cpp and cpu/kernels/f16_bf16.cpp, two units of
// like size that compile side by side; the headers cost too much to be read once per dtype.
#pragma once

#include "problem.h"
#include "simd/types.h"

namespace npu_ce {

template <class T>
void forward_of(const Problem& problem, const ForwardOutputs& outputs, const Parallel& parallel);
template <class T>
void backward_of(const Problem& problem, const Gradients& gradients, const Parallel& parallel);

}  // namespace npu_ce
