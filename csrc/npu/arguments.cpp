// SPDX-License-Identifier: Apache-2.0
#include "arguments.h"

#include <limits>
#include <stdexcept>
#include <string>

namespace npu_ce {
namespace {

int32_t npu_dtype(Dtype dtype, const char* name) {
  switch (dtype) {
    case Dtype::kFloat32:
      return kCeFloat32;
    case Dtype::kFloat16:
      return kCeFloat16;
    case Dtype::kBFloat16:
      return kCeBFloat16;
    case Dtype::kFloat64:
      break;
  }
  throw std::runtime_error("expected " + std::string(name) +
                           " of dtype float32, bfloat16 or float16 on npu, got float64");
}

const void* contiguous(const Tensor& tensor, Copies& copies) {
  if (tensor.is_contiguous()) return tensor.data();
  copies.push_back(tensor.contiguous_copy());
  return copies.back().data();
}

CeRowVector row_vector(const std::optional<Tensor>& tensor, const RowValues& values, const char* name, Copies& copies) {
  if (!tensor) return {};
  const int32_t dtype = npu_dtype(values.dtype, name);
  if (values.stride_elems == 0) return {const_cast<void*>(values.data), dtype, 0};
  return {const_cast<void*>(contiguous(*tensor, copies)), dtype, 1};
}

}  // namespace

CeProblem npu_problem(const LossTensors& tensors, const Problem& problem, Copies& copies) {
  constexpr int64_t kMostClasses = std::numeric_limits<int32_t>::max();
  if (problem.classes > kMostClasses) {
    throw std::runtime_error("expected at most " + std::to_string(kMostClasses) + " classes on npu, got " +
                             std::to_string(problem.classes));
  }
  if (problem.layout.is_planar()) {
    throw std::runtime_error("expected input of shape [N, C] on npu, got " + tensors.input.shape());
  }
  CeProblem result{};
  result.input = problem.input;
  result.rows = static_cast<uint64_t>(problem.rows);
  result.row_stride = static_cast<uint64_t>(problem.layout.image_stride_elems);
  result.classes = static_cast<uint32_t>(problem.classes);
  result.dtype = npu_dtype(problem.dtype, "input");
  result.target = contiguous(tensors.target, copies);
  result.target_dtype = problem.target.is_int64 ? kCeInt64 : kCeInt32;
  result.reduction = static_cast<int32_t>(problem.reduction);
  result.weight = problem.weight;
  result.ignore_index = problem.ignore_index;
  result.label_smoothing = static_cast<float>(problem.label_smoothing);
  result.z_loss = static_cast<float>(problem.z_loss);
  result.softcap = static_cast<float>(problem.softcap);
  result.logit_scale = static_cast<float>(problem.logit_scale);
  return result;
}

CeForwardOutputs npu_outputs(const ForwardOutputs& outputs) {
  CeForwardOutputs result{};
  result.loss = outputs.loss;
  result.z_loss = outputs.z_loss;
  result.loss_dtype = npu_dtype(outputs.loss_dtype, "loss");
  result.log_prob = outputs.log_prob;
  result.lse = static_cast<float*>(outputs.lse);
  result.argmax = outputs.argmax;
  result.entropy = static_cast<float*>(outputs.entropy);
  result.row_stats = static_cast<float*>(outputs.row_stats);
  result.denominators = static_cast<float*>(outputs.denominators);
  return result;
}

CeGradients npu_gradients(const BackwardArguments& arguments, const Gradients& gradients, Copies& copies) {
  CeGradients result{};
  result.loss = row_vector(arguments.loss, gradients.loss, "grad_loss", copies);
  result.z_loss = row_vector(arguments.z_loss, gradients.z_loss, "grad_z_loss", copies);
  result.lse = row_vector(arguments.lse, gradients.lse, "grad_lse", copies);
  result.entropy = row_vector(arguments.entropy, gradients.entropy, "grad_entropy", copies);
  result.log_prob = gradients.log_prob;
  result.log_prob_row_stride = static_cast<uint64_t>(gradients.log_prob_stride_elems);
  if (arguments.entropy) {
    result.entropy_value = static_cast<const float*>(contiguous(*arguments.entropy_value, copies));
  }
  result.row_stats = static_cast<const float*>(gradients.row_stats);
  result.denominators = static_cast<const float*>(gradients.denominators);
  result.input_gradient = gradients.input;
  return result;
}

}  // namespace npu_ce
