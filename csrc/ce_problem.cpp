// SPDX-License-Identifier: Apache-2.0
#include "ce_problem.h"

#include <stdexcept>

namespace npu_ce {
namespace {

void append(std::string& text, const char* part) { text += part; }
void append(std::string& text, int64_t part) { text += std::to_string(part); }
void append(std::string& text, const Tensor& part) { text += part.shape(); }

// The text is put together only on failure: these checks run at every call.
template <class Error = std::runtime_error, class... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::string text;
  (append(text, parts), ...);
  throw Error(text);
}

void require_cpu(const Tensor& tensor, const char* name) {
  require(tensor.is_cpu(), "expected ", name, " on input's device cpu");
}

// Rows of a matrix whose columns lie side by side, copied only if they do not.
struct Rows {
  const void* data;
  int64_t stride_elems;
};

Rows rows_of(const Tensor& tensor, int64_t columns, std::optional<Tensor>& copy) {
  if (columns == 1 || tensor.stride(1) == 1) return {tensor.data(), tensor.stride(0)};
  copy = tensor.contiguous_copy();
  return {copy->data(), columns};
}

Targets targets_of(const Tensor& target, int64_t rows) {
  require_cpu(target, "target");
  const int32_t dtype = target.dtype();
  const bool is_int64 = dtype == aoti_torch_dtype_int64();
  require(is_int64 || dtype == aoti_torch_dtype_int32(), "expected target of dtype int64 or int32");
  require(target.dim() == 1, "expected target of shape [N], got ", target);
  const int64_t targets = target.size(0);
  require<std::invalid_argument>(targets == rows, "expected input batch_size (", rows, ") to match target batch_size (",
                                 targets, ")");
  return {target.data(), is_int64, target.stride(0)};
}

void require_targets_in_range(const Problem& problem) {
  for (int64_t row = 0; row < problem.rows; ++row) {
    const int64_t target = problem.target[row];
    // One comparison: a negative target is a huge unsigned one.
    const bool in_range = static_cast<uint64_t>(target) < static_cast<uint64_t>(problem.classes);
    require<std::out_of_range>(in_range || target == problem.ignore_index, "target[", row, "] = ", target,
                               " is out of bounds for ", problem.classes, " classes: expected 0 <= target < ",
                               problem.classes, " or ignore_index (", problem.ignore_index, ")");
  }
}

const void* weight_of(const std::optional<Tensor>& weight, int64_t classes, Dtype dtype) {
  if (!weight) return nullptr;
  require_cpu(*weight, "weight");
  require(dtype_of(weight->dtype(), "weight") == acc_dtype(dtype), "expected weight of the accumulation dtype");
  require(weight->dim() == 1, "expected weight of shape [C], got ", *weight);
  require(weight->size(0) == classes, "expected weight of shape [", classes, "], one for each class, got ", *weight);
  require(weight->is_contiguous(), "expected a contiguous weight");
  return weight->data();
}

// `per_row_only` where one element for all rows would be a mistake.
RowValues row_values(const std::optional<Tensor>& tensor, const char* name, int64_t rows, bool per_row_only) {
  if (!tensor) return {};
  require_cpu(*tensor, name);
  const int64_t dim = tensor->dim();
  const int64_t elems = tensor->numel();
  require((dim == 1 && elems == rows) || (!per_row_only && elems == 1), "expected ", name, " of ",
          per_row_only ? rows : int64_t{1}, " elements, got ", *tensor);
  return {tensor->data(), dtype_of(tensor->dtype(), name), elems == 1 ? 0 : tensor->stride(0)};
}

const void* acc_data(const Tensor& tensor, const char* name, int64_t elems, Dtype dtype) {
  require_cpu(tensor, name);
  require(tensor.numel() == elems && tensor.is_contiguous(), "expected a contiguous ", name, " of ", elems,
          " elements, got ", tensor);
  require(dtype_of(tensor.dtype(), name) == acc_dtype(dtype), "expected ", name, " of the accumulation dtype");
  return tensor.data();
}

}  // namespace

Dtype dtype_of(int32_t torch_dtype_number, const char* name) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16, Dtype::kFloat64}) {
    if (torch_dtype_number == torch_dtype(dtype)) return dtype;
  }
  require(false, "expected ", name, " of dtype float32, bfloat16, float16 or float64");
  __builtin_unreachable();
}

int32_t torch_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return aoti_torch_dtype_float32();
    case Dtype::kFloat64:
      return aoti_torch_dtype_float64();
    case Dtype::kBFloat16:
      return aoti_torch_dtype_bfloat16();
    case Dtype::kFloat16:
      return aoti_torch_dtype_float16();
  }
  __builtin_unreachable();
}

Owning<Problem> problem_of(const LossTensors& tensors, const LossTerms& terms) {
  const Tensor& input = tensors.input;
  Owning<Problem> result{};
  Problem& problem = result.plain;
  problem.dtype = dtype_of(input.dtype(), "input");
  require(input.dim() == 2, "expected input of shape [N, C], got ", input);
  problem.rows = input.size(0);
  problem.classes = input.size(1);
  require(problem.classes > 0, "expected input with at least one class, got shape ", input);
  require(terms.reduction >= 0 && terms.reduction <= 2, "expected reduction 0, 1 or 2, got ", terms.reduction);
  problem.reduction = static_cast<Reduction>(terms.reduction);
  problem.ignore_index = terms.ignore_index;
  problem.label_smoothing = terms.label_smoothing;
  problem.z_loss = terms.z_loss;
  problem.softcap = terms.softcap;
  problem.logit_scale = terms.logit_scale;
  problem.target = targets_of(tensors.target, problem.rows);
  problem.weight = weight_of(tensors.weight, problem.classes, problem.dtype);
  require_targets_in_range(problem);
  const Rows rows = rows_of(input, problem.classes, result.copy);
  problem.input = rows.data;
  problem.input_stride_elems = rows.stride_elems;
  return result;
}

Owning<Gradients> gradients_of(const BackwardArguments& arguments, const Problem& problem) {
  const bool per_row = problem.reduction == Reduction::kNone;
  Owning<Gradients> result{};
  Gradients& gradients = result.plain;
  gradients.loss = row_values(arguments.loss, "grad_loss", problem.rows, per_row);
  gradients.z_loss = row_values(arguments.z_loss, "grad_z_loss", problem.rows, per_row);
  gradients.lse = row_values(arguments.lse, "grad_lse", problem.rows, true);
  gradients.entropy = row_values(arguments.entropy, "grad_entropy", problem.rows, true);
  gradients.row_stats = acc_data(arguments.row_stats, "row_stats", 2 * problem.rows, problem.dtype);
  gradients.denominators = acc_data(arguments.denominators, "denominators", 2, problem.dtype);
  if (arguments.entropy) {
    require(arguments.entropy_value.has_value(), "expected entropy beside grad_entropy");
    gradients.entropy_value = row_values(arguments.entropy_value, "entropy", problem.rows, true);
  }
  if (arguments.log_prob) {
    const Tensor& log_prob = *arguments.log_prob;
    require_cpu(log_prob, "grad_log_prob");
    require(log_prob.dim() == 2 && log_prob.size(0) == problem.rows && log_prob.size(1) == problem.classes,
            "expected grad_log_prob of input's shape, got ", log_prob);
    require(dtype_of(log_prob.dtype(), "grad_log_prob") == problem.dtype, "expected grad_log_prob of input's dtype");
    const Rows rows = rows_of(log_prob, problem.classes, result.copy);
    gradients.log_prob = rows.data;
    gradients.log_prob_stride_elems = rows.stride_elems;
  }
  return result;
}

}  // namespace npu_ce
