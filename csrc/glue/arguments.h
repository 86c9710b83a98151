// SPDX-License-Identifier: Apache-2.0
// Turns tensors into the plain structs of problem.h, with the checks that protect memory, for every device. Everything
// else is checked in Python, where it serves tracing too; what is checked in both places has the same text.
#pragma once

#include <optional>

#include "abi.h"
#include "problem.h"

namespace npu_ce {

struct LossTensors {
  explicit LossTensors(Stack& stack) : input(stack.tensor()), target(stack.tensor()), weight(stack.optional_tensor()) {}

  Tensor input;
  Tensor target;
  std::optional<Tensor> weight;
};

struct LossTerms {
  explicit LossTerms(Stack& stack)
      : reduction(stack.integer()),
        ignore_index(stack.integer()),
        label_smoothing(stack.real()),
        z_loss(stack.real()),
        softcap(stack.real()),
        logit_scale(stack.real()) {}

  int64_t reduction;
  int64_t ignore_index;
  double label_smoothing;
  double z_loss;
  double softcap;
  double logit_scale;
};

// The arguments of _forward, in their order.
struct ForwardArguments {
  explicit ForwardArguments(Stack& stack)
      : tensors(stack), terms(stack), asked(stack.integer()), loss_type(stack.dtype()) {}

  LossTensors tensors;
  LossTerms terms;
  int64_t asked;  // bits
  int32_t loss_type;
};

// The arguments of _backward and _backward_, in their order.
struct BackwardArguments {
  explicit BackwardArguments(Stack& stack)
      : loss(stack.optional_tensor()),
        z_loss(stack.optional_tensor()),
        log_prob(stack.optional_tensor()),
        lse(stack.optional_tensor()),
        entropy(stack.optional_tensor()),
        tensors(stack),
        row_stats(stack.tensor()),
        entropy_value(stack.optional_tensor()),
        denominators(stack.tensor()),
        terms(stack) {}

  std::optional<Tensor> loss;
  std::optional<Tensor> z_loss;
  std::optional<Tensor> log_prob;
  std::optional<Tensor> lse;
  std::optional<Tensor> entropy;
  LossTensors tensors;
  Tensor row_stats;
  std::optional<Tensor> entropy_value;
  Tensor denominators;
  LossTerms terms;
};

// A plain struct, and what keeps its pointers alive where a tensor had to be copied.
template <class Plain>
struct Owning {
  Plain plain;
  std::optional<Tensor> copy;
};

// The results of _forward, in their order. One that was not asked for has no elements.
struct ForwardTensors {
  static ForwardTensors empty(const ForwardArguments& arguments, const Problem& problem);

  ForwardOutputs pointers() const;
  void hand_over(StableIValue* stack);

  Tensor loss;
  Tensor z_loss;
  Tensor log_prob;
  Tensor lse;
  Tensor argmax;
  Tensor entropy;
  Tensor row_stats;
  Tensor denominators;
  int64_t asked;
};

// These throw std::invalid_argument for batch sizes that differ and std::runtime_error for the rest, which torch.ops
// turns into ValueError and RuntimeError. They read no tensor's data.
Owning<Problem> problem_of(const LossTensors& tensors, const LossTerms& terms);

// Fills all but the output, Gradients::input.
Owning<Gradients> gradients_of(const BackwardArguments& arguments, const Problem& problem);

// Throws std::out_of_range, torch.ops' IndexError, for a target outside [0, classes) that is not ignored. Targets must
// be in the CPU's memory.
void require_targets_in_range(const Problem& problem);

// Uninitialised, contiguous, with the logits' shape: for their gradient, or for log_prob.
Tensor empty_like(const Tensor& logits);

// The data that _backward_ overwrites. Throws std::runtime_error where the input is not contiguous.
void* contiguous_data(const Tensor& input);

Dtype dtype_of(int32_t torch_dtype, const char* name);
int32_t torch_dtype(Dtype dtype);
inline Dtype acc_dtype(Dtype dtype) { return dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32; }

}  // namespace npu_ce
