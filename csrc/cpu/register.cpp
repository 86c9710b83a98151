// SPDX-License-Identifier: Apache-2.0
// The table of the CPU kernels, which glue/active_kernels.cpp registers for the operators that Python has defined.
#include "glue/active_kernels.h"
#include "glue/arguments.h"
#include "huge_pages.h"

namespace npu_ce {
namespace {

Owning<Problem> checked_problem(const LossTensors& tensors, const LossTerms& terms) {
  Owning<Problem> problem = problem_of(tensors, terms);
  require_targets_in_range(problem.plain);
  return problem;
}

void ask_for_huge_pages(const Tensor& output, Dtype dtype) {
  const int64_t elem_bytes = dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
  advise_huge_pages(output.mutable_data(), output.numel() * elem_bytes);
}

void forward_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Stack values(stack);
  const ForwardArguments arguments(values);
  const Owning<Problem> problem = checked_problem(arguments.tensors, arguments.terms);
  ForwardTensors results = ForwardTensors::empty(arguments, problem.plain);
  ask_for_huge_pages(results.log_prob, problem.plain.dtype);
  ask_for_huge_pages(results.row_stats, acc_dtype(problem.plain.dtype));  // as large as logits of two classes
  forward(problem.plain, results.pointers(), torch_threads());
  results.hand_over(stack);
}

void backward_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Stack values(stack);
  const BackwardArguments arguments(values);
  const Owning<Problem> problem = checked_problem(arguments.tensors, arguments.terms);
  Owning<Gradients> gradients = gradients_of(arguments, problem.plain);
  Tensor grad_input = empty_like(arguments.tensors.input);
  ask_for_huge_pages(grad_input, problem.plain.dtype);
  gradients.plain.input = grad_input.mutable_data();
  backward(problem.plain, gradients.plain, torch_threads());
  stack[0] = result(std::move(grad_input));
}

void backward_in_place_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Stack values(stack);
  const BackwardArguments arguments(values);
  const Owning<Problem> problem = checked_problem(arguments.tensors, arguments.terms);
  Owning<Gradients> gradients = gradients_of(arguments, problem.plain);
  gradients.plain.input = contiguous_data(arguments.tensors.input);
  backward(problem.plain, gradients.plain, torch_threads());
}

}  // namespace

const Kernels kKernels = {"CPU", forward_cpu, backward_cpu, backward_in_place_cpu};

}  // namespace npu_ce
