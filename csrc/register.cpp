// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of the internal operators. Their schemas are defined in Python.
#include <stdexcept>

#include "ce_problem.h"
#include "cpu/huge_pages.h"
#include "torch_abi.h"

namespace npu_ce {
namespace {

// Bits of _forward's `outputs`.
constexpr int64_t kZLoss = 1;
constexpr int64_t kLogProb = 2;
constexpr int64_t kLse = 4;
constexpr int64_t kArgmax = 8;
constexpr int64_t kEntropy = 16;

Tensor empty_vector(int64_t elems, int32_t dtype) { return Tensor::empty(1, &elems, dtype); }

Tensor empty_loss(const Problem& problem, int32_t dtype) {
  return Tensor::empty(problem.reduction == Reduction::kNone ? 1 : 0, &problem.rows, dtype);
}

Tensor empty_logits(const Problem& problem) {
  const int64_t sizes[] = {problem.rows, problem.classes};
  Tensor tensor = Tensor::empty(2, sizes, torch_dtype(problem.dtype));
  const int64_t elem_bytes = problem.dtype == Dtype::kFloat64 ? 8 : problem.dtype == Dtype::kFloat32 ? 4 : 2;
  advise_huge_pages(tensor.mutable_data(), problem.rows * problem.classes * elem_bytes);
  return tensor;
}

void forward_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Stack arguments(stack);
  const LossTensors tensors(arguments);
  const LossTerms terms(arguments);
  const int64_t asked = arguments.integer();
  const int32_t loss_type = arguments.dtype();
  const Owning<Problem> owning = problem_of(tensors, terms);
  const Problem& problem = owning.plain;

  const int32_t acc_type = torch_dtype(acc_dtype(problem.dtype));
  const auto if_asked = [&](int64_t bit, int64_t elems) { return (asked & bit) != 0 ? elems : 0; };
  Tensor loss = empty_loss(problem, loss_type);
  Tensor z_loss = (asked & kZLoss) != 0 ? empty_loss(problem, loss_type) : empty_vector(0, loss_type);
  Tensor log_prob = (asked & kLogProb) != 0 ? empty_logits(problem) : empty_vector(0, torch_dtype(problem.dtype));
  Tensor lse = empty_vector(if_asked(kLse, problem.rows), acc_type);
  Tensor argmax = empty_vector(if_asked(kArgmax, problem.rows), aoti_torch_dtype_int64());
  Tensor entropy = empty_vector(if_asked(kEntropy, problem.rows), acc_type);
  const int64_t stats_sizes[] = {2, problem.rows};
  Tensor row_stats = Tensor::empty(2, stats_sizes, acc_type);
  Tensor denominators = empty_vector(2, acc_type);

  const auto data = [&](int64_t bit, const Tensor& tensor) {
    return (asked & bit) != 0 ? tensor.mutable_data() : nullptr;
  };
  ForwardOutputs outputs{};
  outputs.loss = loss.mutable_data();
  outputs.z_loss = data(kZLoss, z_loss);
  outputs.loss_dtype = dtype_of(loss_type, "loss");
  outputs.log_prob = data(kLogProb, log_prob);
  outputs.lse = data(kLse, lse);
  outputs.argmax = static_cast<int64_t*>(data(kArgmax, argmax));
  outputs.entropy = data(kEntropy, entropy);
  outputs.row_stats = row_stats.mutable_data();
  outputs.denominators = denominators.mutable_data();
  forward(problem, outputs, torch_threads());

  Tensor* const results[] = {&loss, &z_loss, &log_prob, &lse, &argmax, &entropy, &row_stats, &denominators};
  for (Tensor* tensor : results) *stack++ = result(std::move(*tensor));
}

void backward_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Stack values(stack);
  const BackwardArguments arguments(values);
  const Owning<Problem> problem = problem_of(arguments.tensors, arguments.terms);
  Owning<Gradients> gradients = gradients_of(arguments, problem.plain);
  Tensor grad_input = empty_logits(problem.plain);
  gradients.plain.input = grad_input.mutable_data();
  backward(problem.plain, gradients.plain, torch_threads());
  stack[0] = result(std::move(grad_input));
}

void* contiguous_data(const Tensor& input) {
  if (!input.is_contiguous()) throw std::runtime_error("expected a contiguous input to write the gradient over");
  return input.mutable_data();
}

void backward_in_place_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Stack values(stack);
  const BackwardArguments arguments(values);
  const Owning<Problem> problem = problem_of(arguments.tensors, arguments.terms);
  Owning<Gradients> gradients = gradients_of(arguments, problem.plain);
  gradients.plain.input = contiguous_data(arguments.tensors.input);
  backward(problem.plain, gradients.plain, torch_threads());
}

const CpuRegistration registration{
    {"_forward", forward_cpu}, {"_backward", backward_cpu}, {"_backward_", backward_in_place_cpu}};

}  // namespace
}  // namespace npu_ce
