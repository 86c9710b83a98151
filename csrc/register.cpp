// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of the internal operators, over torch's stable C ABI. Their schemas are defined in Python.
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "ce_problem.h"
#include "cpu/huge_pages.h"

namespace npu_ce {
namespace {

using OptionalTensor = std::optional<Tensor>;
using torch::headeronly::ScalarType;

// Bits of _forward's `outputs`.
constexpr int64_t kZLoss = 1;
constexpr int64_t kLogProb = 2;
constexpr int64_t kLse = 4;
constexpr int64_t kArgmax = 8;
constexpr int64_t kEntropy = 16;

Parallel torch_threads() {
  uint32_t threads;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  const auto run = [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
  };
  return {run, static_cast<int64_t>(threads)};
}

Dtype loss_dtype_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      throw std::runtime_error("loss_dtype must be float16, bfloat16, float32 or float64");
  }
}

Tensor empty_loss(const Problem& problem, int32_t dtype) {
  if (problem.reduction == Reduction::kNone) return empty_vector(problem.rows, dtype);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(0, nullptr, nullptr, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor empty_logits(const Problem& problem) {
  Tensor tensor = empty_matrix(problem.rows, problem.classes, torch_dtype(problem.dtype));
  const int64_t elem_bytes = static_cast<int64_t>(tensor.element_size());
  advise_huge_pages(tensor.mutable_data_ptr(), problem.rows * problem.classes * elem_bytes);
  return tensor;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward_cpu(
    const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
    double label_smoothing, double z_loss, double softcap, double logit_scale, int64_t outputs, ScalarType loss_dtype) {
  const Owning<Problem> owning =
      problem_of({input, target, weight, reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale});
  const Problem& problem = owning.plain;
  ForwardOutputs out{};
  out.loss_dtype = loss_dtype_of(loss_dtype);
  const int32_t loss_type = torch_dtype(out.loss_dtype);
  const int32_t acc_type = torch_dtype(acc_dtype(problem.dtype));
  const auto row_vector = [&](int64_t bit, int32_t dtype) {
    return empty_vector((outputs & bit) != 0 ? problem.rows : 0, dtype);
  };
  const auto data = [&](int64_t bit, const Tensor& tensor) {
    return (outputs & bit) != 0 ? tensor.mutable_data_ptr() : nullptr;
  };

  Tensor loss = empty_loss(problem, loss_type);
  Tensor z_losses = (outputs & kZLoss) != 0 ? empty_loss(problem, loss_type) : empty_vector(0, loss_type);
  Tensor log_prob = (outputs & kLogProb) != 0 ? empty_logits(problem) : empty_vector(0, torch_dtype(problem.dtype));
  Tensor lse = row_vector(kLse, acc_type);
  Tensor argmax = row_vector(kArgmax, aoti_torch_dtype_int64());
  Tensor entropy = row_vector(kEntropy, acc_type);
  Tensor row_stats = empty_matrix(2, problem.rows, acc_type);
  Tensor denominators = empty_vector(2, acc_type);

  out.loss = loss.mutable_data_ptr();
  out.z_loss = data(kZLoss, z_losses);
  out.log_prob = data(kLogProb, log_prob);
  out.lse = data(kLse, lse);
  out.argmax = static_cast<int64_t*>(data(kArgmax, argmax));
  out.entropy = data(kEntropy, entropy);
  out.row_stats = row_stats.mutable_data_ptr();
  out.denominators = denominators.mutable_data_ptr();
  forward(problem, out, torch_threads());
  return {loss, z_losses, log_prob, lse, argmax, entropy, row_stats, denominators};
}

Tensor backward_cpu(const OptionalTensor& grad_loss, const OptionalTensor& grad_z_loss,
                    const OptionalTensor& grad_log_prob, const OptionalTensor& grad_lse,
                    const OptionalTensor& grad_entropy, const Tensor& input, const Tensor& target,
                    const OptionalTensor& weight, const Tensor& row_stats, const OptionalTensor& entropy,
                    const Tensor& denominators, int64_t reduction, int64_t ignore_index, double label_smoothing,
                    double z_loss, double softcap, double logit_scale) {
  const Owning<Problem> problem =
      problem_of({input, target, weight, reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale});
  Owning<Gradients> gradients = gradients_of(
      {grad_loss, grad_z_loss, grad_log_prob, grad_lse, grad_entropy, row_stats, entropy, denominators}, problem.plain);
  Tensor grad_input = empty_logits(problem.plain);
  gradients.plain.input = grad_input.mutable_data_ptr();
  backward(problem.plain, gradients.plain, torch_threads());
  return grad_input;
}

void backward_in_place_cpu(const OptionalTensor& grad_loss, const OptionalTensor& grad_z_loss,
                           const OptionalTensor& grad_log_prob, const OptionalTensor& grad_lse,
                           const OptionalTensor& grad_entropy, const Tensor& input, const Tensor& target,
                           const OptionalTensor& weight, const Tensor& row_stats, const OptionalTensor& entropy,
                           const Tensor& denominators, int64_t reduction, int64_t ignore_index, double label_smoothing,
                           double z_loss, double softcap, double logit_scale) {
  if (!input.is_contiguous()) throw std::runtime_error("input must be contiguous to be written in place");
  const Owning<Problem> problem =
      problem_of({input, target, weight, reduction, ignore_index, label_smoothing, z_loss, softcap, logit_scale});
  Owning<Gradients> gradients = gradients_of(
      {grad_loss, grad_z_loss, grad_log_prob, grad_lse, grad_entropy, row_stats, entropy, denominators}, problem.plain);
  gradients.plain.input = input.mutable_data_ptr();
  backward(problem.plain, gradients.plain, torch_threads());
}

}  // namespace
}  // namespace npu_ce

STABLE_TORCH_LIBRARY_IMPL(npu_ce_jit, CPU, m) {
  m.impl("_forward", TORCH_BOX(npu_ce::forward_cpu));
  m.impl("_backward", TORCH_BOX(npu_ce::backward_cpu));
  m.impl("_backward_", TORCH_BOX(npu_ce::backward_in_place_cpu));
}
