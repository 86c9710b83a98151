// SPDX-License-Identifier: Apache-2.0
#include "ce_problem.h"

#include <sstream>
#include <stdexcept>

namespace npu_ce {
namespace {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::runtime_error(text(parts...));
}

int32_t raw_dtype(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

void require_cpu(const Tensor& tensor, const char* name) {
  require(tensor.is_cpu(), name, " is expected on the CPU, as input is");
}

Tensor contiguous_copy(const Tensor& tensor, int64_t rows, int64_t columns) {
  Tensor copy = empty_matrix(rows, columns, raw_dtype(tensor));
  TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(copy.get(), tensor.get(), 0));
  return copy;
}

// Rows of a matrix whose columns lie side by side, copied only if they do not.
struct Rows {
  const void* data;
  int64_t stride_elems;
};

Rows rows_of(const Tensor& tensor, int64_t rows, int64_t columns, std::optional<Tensor>& copy) {
  if (columns == 1 || tensor.stride(1) == 1) return {tensor.const_data_ptr(), tensor.stride(0)};
  copy = contiguous_copy(tensor, rows, columns);
  return {copy->const_data_ptr(), columns};
}

Targets targets_of(const Tensor& target, int64_t rows) {
  require_cpu(target, "target");
  require(target.dim() == 1, "target must be 1-dimensional, got ", target.dim(), " dimensions");
  const int32_t dtype = raw_dtype(target);
  const bool is_int64 = dtype == aoti_torch_dtype_int64();
  require(is_int64 || dtype == aoti_torch_dtype_int32(), "target must be int32 or int64");
  if (target.size(0) != rows) {
    throw std::invalid_argument(
        text("expected input batch_size (", rows, ") to match target batch_size (", target.size(0), ")"));
  }
  return {target.const_data_ptr(), is_int64, target.stride(0)};
}

void require_targets_in_range(const Problem& problem) {
  for (int64_t row = 0; row < problem.rows; ++row) {
    const int64_t target = problem.target[row];
    // One comparison: a negative target is a huge unsigned one.
    if (static_cast<uint64_t>(target) < static_cast<uint64_t>(problem.classes) || target == problem.ignore_index)
      continue;
    throw std::out_of_range(text("target[", row, "] = ", target, " is out of bounds for ", problem.classes,
                                 " classes: expected 0 <= target < ", problem.classes, " or ignore_index (",
                                 problem.ignore_index, ")"));
  }
}

const void* weight_of(const std::optional<Tensor>& weight, int64_t classes, Dtype dtype) {
  if (!weight) return nullptr;
  require_cpu(*weight, "weight");
  require(weight->dim() == 1 && weight->size(0) == classes && weight->is_contiguous(),
          "weight must be a contiguous vector of ", classes, " elements");
  require(dtype_of(*weight, "weight") == acc_dtype(dtype), "weight must have the accumulation dtype");
  return weight->const_data_ptr();
}

// `per_row_only` where one element for all rows would be a mistake.
RowValues row_values(const std::optional<Tensor>& tensor, const char* name, int64_t rows, bool per_row_only) {
  if (!tensor) return {};
  require_cpu(*tensor, name);
  const int64_t dim = tensor->dim();
  const int64_t elems = tensor->numel();
  require((dim == 1 && elems == rows) || (!per_row_only && elems == 1), name, " must have ",
          per_row_only ? "one element per row" : "one element", ", got ", elems, " for ", rows, " rows");
  return {tensor->const_data_ptr(), dtype_of(*tensor, name), elems == 1 ? 0 : tensor->stride(0)};
}

const void* acc_data(const Tensor& tensor, const char* name, int64_t elems, Dtype dtype) {
  require_cpu(tensor, name);
  require(tensor.numel() == elems && tensor.is_contiguous(), name, " must be contiguous with ", elems,
          " elements, got ", tensor.numel());
  require(dtype_of(tensor, name) == acc_dtype(dtype), name, " must have the accumulation dtype");
  return tensor.const_data_ptr();
}

}  // namespace

Dtype dtype_of(const Tensor& tensor, const char* name) {
  const int32_t dtype = raw_dtype(tensor);
  for (const Dtype candidate : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16, Dtype::kFloat64}) {
    if (dtype == torch_dtype(candidate)) return candidate;
  }
  throw std::runtime_error(text(name, " must be float16, bfloat16, float32 or float64"));
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

Tensor empty_vector(int64_t elems, int32_t dtype) {
  const int64_t stride = 1;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &elems, &stride, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor empty_matrix(int64_t rows, int64_t columns, int32_t dtype) {
  const int64_t sizes[] = {rows, columns};
  const int64_t strides[] = {columns, 1};
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Owning<Problem> problem_of(const Arguments& arguments) {
  const Tensor& input = arguments.input;
  require(input.dim() == 2, "input must be 2-dimensional, got ", input.dim(), " dimensions");
  require(input.size(1) > 0, "input must have at least one class");
  require(arguments.reduction >= 0 && arguments.reduction <= 2, "reduction must be 0, 1 or 2, got ",
          arguments.reduction);

  Owning<Problem> result{};
  Problem& problem = result.plain;
  problem.dtype = dtype_of(input, "input");
  problem.rows = input.size(0);
  problem.classes = input.size(1);
  problem.reduction = static_cast<Reduction>(arguments.reduction);
  problem.ignore_index = arguments.ignore_index;
  problem.label_smoothing = arguments.label_smoothing;
  problem.z_loss = arguments.z_loss;
  problem.softcap = arguments.softcap;
  problem.logit_scale = arguments.logit_scale;
  problem.target = targets_of(arguments.target, problem.rows);
  problem.weight = weight_of(arguments.weight, problem.classes, problem.dtype);
  require_targets_in_range(problem);
  const Rows rows = rows_of(input, problem.rows, problem.classes, result.copy);
  problem.input = rows.data;
  problem.input_stride_elems = rows.stride_elems;
  return result;
}

Owning<Gradients> gradients_of(const GradientArguments& arguments, const Problem& problem) {
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
    require(arguments.entropy_value.has_value(), "grad_entropy needs entropy");
    gradients.entropy_value = row_values(arguments.entropy_value, "entropy", problem.rows, true);
  }
  if (arguments.log_prob) {
    const Tensor& log_prob = *arguments.log_prob;
    require_cpu(log_prob, "grad_log_prob");
    require(log_prob.dim() == 2 && log_prob.size(0) == problem.rows && log_prob.size(1) == problem.classes,
            "grad_log_prob must have input's shape");
    require(dtype_of(log_prob, "grad_log_prob") == problem.dtype, "grad_log_prob must have input's dtype");
    const Rows rows = rows_of(log_prob, problem.rows, problem.classes, result.copy);
    gradients.log_prob = rows.data;
    gradients.log_prob_stride_elems = rows.stride_elems;
  }
  return result;
}

}  // namespace npu_ce
