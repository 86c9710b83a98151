// SPDX-License-Identifier: Apache-2.0
// The NPU kernels of the internal operators: each checks its arguments, allocates, plans, and enqueues its launches,
// which hold values only.
#include <c10/util/Exception.h>

#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>

#include "../../ascendc/abi/launch.h"
#include "arguments.h"
#include "backward_plan.h"
#include "device.h"
#include "forward_plan.h"
#include "glue/active_kernels.h"

namespace npu_ce {
namespace {

// Of a core's UB, 192 KiB, the system takes 256 bytes and the compiler 8 KiB.
constexpr uint32_t kUbBytes = 192 * 1024 - 256 - 8 * 1024;

std::atomic<bool> check_targets{false};

// Makes the host wait, since it copies the targets to the host.
void require_npu_targets_in_range(const Tensor& target, Problem problem) {
  const Tensor on_cpu = target.contiguous_copy({aoti_torch_device_type_cpu(), -1});
  problem.target.data = on_cpu.data();
  problem.target.stride_elems = 1;
  require_targets_in_range(problem);
}

void require_plain_format(const std::optional<Tensor>& tensor, const char* name) {
  if (tensor) require_plain_format(*tensor, name);
}

Owning<Problem> checked_problem(const LossTensors& tensors, const LossTerms& terms) {
  require_plain_format(tensors.input, "input");
  require_plain_format(tensors.target, "target");
  require_plain_format(tensors.weight, "weight");
  Owning<Problem> problem = problem_of(tensors, terms);
  if (check_targets.load(std::memory_order_relaxed)) require_npu_targets_in_range(tensors.target, problem.plain);
  return problem;
}

Owning<Gradients> checked_gradients(const BackwardArguments& arguments, const Problem& problem) {
  require_plain_format(arguments.loss, "grad_loss");
  require_plain_format(arguments.z_loss, "grad_z_loss");
  require_plain_format(arguments.log_prob, "grad_log_prob");
  require_plain_format(arguments.lse, "grad_lse");
  require_plain_format(arguments.entropy, "grad_entropy");
  return gradients_of(arguments, problem);
}

Tensor empty_workspace(uint64_t bytes, const Device& device) {
  const int64_t floats = static_cast<int64_t>((bytes + sizeof(float) - 1) / sizeof(float));
  return Tensor::empty(1, &floats, aoti_torch_dtype_float32(), device);
}

void forward_npu(StableIValue* stack, uint64_t, uint64_t) {
  Stack values(stack);
  const ForwardArguments arguments(values);
  const LossTensors& tensors = arguments.tensors;
  const NpuGuard npu(tensors.input);
  const Owning<Problem> checked = checked_problem(tensors, arguments.terms);
  Copies copies;
  const CeProblem problem = npu_problem(tensors, checked.plain, copies);
  ForwardTensors results = ForwardTensors::empty(arguments, checked.plain);
  CeForwardOutputs outputs = npu_outputs(results.pointers());
  const CeForwardPlan plan = plan_forward(problem, outputs, {npu.vector_cores(), kUbBytes});
  const Tensor workspace = empty_workspace(plan.workspace_bytes, tensors.input.device());
  outputs.workspace = static_cast<float*>(workspace.mutable_data());
  npu.enqueue("npu_ce_jit::_forward", [=](void* stream) { return npu_ce_forward(&problem, &outputs, &plan, stream); });
  results.hand_over(stack);
}

void enqueue_backward(const NpuGuard& npu, const BackwardArguments& arguments, const Problem& checked,
                      const Gradients& checked_gradients) {
  Copies copies;
  const CeProblem problem = npu_problem(arguments.tensors, checked, copies);
  CeGradients gradients = npu_gradients(arguments, checked_gradients, copies);
  const CeBackwardPlan plan = plan_backward(problem, gradients, {npu.vector_cores(), kUbBytes});
  if (plan.blocks == 0) return;  // no elements; what is enqueued must launch something
  const Tensor workspace = empty_workspace(plan.workspace_bytes, arguments.tensors.input.device());
  gradients.workspace = static_cast<float*>(workspace.mutable_data());
  npu.enqueue("npu_ce_jit::_backward",
              [=](void* stream) { return npu_ce_backward(&problem, &gradients, &plan, stream); });
}

void backward_npu(StableIValue* stack, uint64_t, uint64_t) {
  Stack values(stack);
  const BackwardArguments arguments(values);
  const NpuGuard npu(arguments.tensors.input);
  const Owning<Problem> problem = checked_problem(arguments.tensors, arguments.terms);
  Owning<Gradients> gradients = checked_gradients(arguments, problem.plain);
  Tensor grad_input = empty_like(arguments.tensors.input);
  gradients.plain.input = grad_input.mutable_data();
  enqueue_backward(npu, arguments, problem.plain, gradients.plain);
  stack[0] = result(std::move(grad_input));
}

void backward_in_place_npu(StableIValue* stack, uint64_t, uint64_t) {
  Stack values(stack);
  const BackwardArguments arguments(values);
  const NpuGuard npu(arguments.tensors.input);
  const Owning<Problem> problem = checked_problem(arguments.tensors, arguments.terms);
  Owning<Gradients> gradients = checked_gradients(arguments, problem.plain);
  gradients.plain.input = contiguous_data(arguments.tensors.input);
  enqueue_backward(npu, arguments, problem.plain, gradients.plain);
}

// Torch's C ABI reduces every exception to text. Programs catch OutOfMemoryError by its type, to try again with less.
template <BoxedKernel kernel>
void with_out_of_memory_error(StableIValue* stack, uint64_t arguments, uint64_t results) {
  try {
    kernel(stack, arguments, results);
  } catch (const std::runtime_error& error) {
    const bool is_out_of_memory = std::string(error.what()).find("NPU out of memory") != std::string::npos;
    TORCH_CHECK_WITH(OutOfMemoryError, !is_out_of_memory, error.what());
    throw;
  }
}

}  // namespace

const Kernels kKernels = {"PrivateUse1", with_out_of_memory_error<forward_npu>, with_out_of_memory_error<backward_npu>,
                          with_out_of_memory_error<backward_in_place_npu>};

}  // namespace npu_ce

// The switch of NPU_CE_JIT_CHECK_TARGETS, which the loader calls by name.
extern "C" __attribute__((visibility("default"))) void npu_ce_jit_set_check_targets(int enabled) {
  npu_ce::check_targets.store(enabled != 0, std::memory_order_relaxed);
}
