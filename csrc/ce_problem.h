// SPDX-License-Identifier: Apache-2.0
// Tensors to the plain structs of cpu/, with the checks that protect memory. Everything else is checked in Python,
// where it serves tracing too.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "cpu/problem.h"

namespace npu_ce {

using torch::stable::Tensor;

// The arguments that forward and backward share, in the operators' order.
struct Arguments {
  const Tensor& input;
  const Tensor& target;
  const std::optional<Tensor>& weight;
  int64_t reduction;
  int64_t ignore_index;
  double label_smoothing;
  double z_loss;
  double softcap;
  double logit_scale;
};

struct GradientArguments {
  const std::optional<Tensor>& loss;
  const std::optional<Tensor>& z_loss;
  const std::optional<Tensor>& log_prob;
  const std::optional<Tensor>& lse;
  const std::optional<Tensor>& entropy;
  const Tensor& row_stats;
  const std::optional<Tensor>& entropy_value;
  const Tensor& denominators;
};

// A plain struct, and what keeps its pointers alive where a tensor had to be copied.
template <class Plain>
struct Owning {
  Plain plain;
  std::optional<Tensor> copy;
};

// Throws std::out_of_range for a target outside [0, classes) that is not ignored, std::invalid_argument for batch sizes
// that differ and std::runtime_error for the rest; torch.ops turns them into IndexError, ValueError and RuntimeError.
Owning<Problem> problem_of(const Arguments& arguments);

// All but the output `input`.
Owning<Gradients> gradients_of(const GradientArguments& arguments, const Problem& problem);

Dtype dtype_of(const Tensor& tensor, const char* name);
int32_t torch_dtype(Dtype dtype);
inline Dtype acc_dtype(Dtype dtype) { return dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32; }

Tensor empty_vector(int64_t elems, int32_t dtype);
Tensor empty_matrix(int64_t rows, int64_t columns, int32_t dtype);

}  // namespace npu_ce
