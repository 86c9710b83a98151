// SPDX-License-Identifier: Apache-2.0
#include "arguments.h"

#include <atomic>
#include <stdexcept>

namespace npu_ce {
namespace {

void append(std::string& text, const char* part) { text += part; }
void append(std::string& text, int64_t part) { text += std::to_string(part); }
void append(std::string& text, const Tensor& part) { text += part.shape(); }
void append(std::string& text, const Device& part) { text += part.name(); }

// The text is put together only on failure: these checks run at every call.
template <class Error = std::runtime_error, class... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::string text;
  (append(text, parts), ...);
  throw Error(text);
}

void require_device(const Tensor& tensor, const char* name, const Device& device) {
  require(tensor.device() == device, "expected ", name, " on input's device ", device, ", got ", tensor.device());
}

// Rows of a matrix with column stride 1; a matrix with another one is copied.
struct StridedRows {
  const void* data;
  int64_t stride_elems;
};

StridedRows rows_of(const Tensor& tensor, int64_t columns, std::optional<Tensor>& copy) {
  if (columns == 1 || tensor.stride(1) == 1) return {tensor.data(), tensor.stride(0)};
  copy = tensor.contiguous_copy();
  return {copy->data(), columns};
}

Targets targets_of(const Tensor& target, int64_t rows, const Device& device) {
  require_device(target, "target", device);
  const int32_t dtype = target.dtype();
  const bool is_int64 = dtype == aoti_torch_dtype_int64();
  require(is_int64 || dtype == aoti_torch_dtype_int32(), "expected target of dtype int64 or int32");
  require(target.dim() == 1, "expected target of shape [N], got ", target);
  const int64_t targets = target.size(0);
  require<std::invalid_argument>(targets == rows, "expected input batch_size (", rows, ") to match target batch_size (",
                                 targets, ")");
  return {target.data(), is_int64, target.stride(0)};
}

const void* weight_of(const std::optional<Tensor>& weight, int64_t classes, Dtype dtype, const Device& device) {
  if (!weight) return nullptr;
  require_device(*weight, "weight", device);
  require(dtype_of(weight->dtype(), "weight") == acc_dtype(dtype), "expected weight of the accumulation dtype");
  require(weight->dim() == 1, "expected weight of shape [C], got ", *weight);
  require(weight->size(0) == classes, "expected weight of shape [", classes, "], one for each class, got ", *weight);
  require(weight->is_contiguous(), "expected a contiguous weight");
  return weight->data();
}

// `per_row_only`: one element for all rows is refused.
RowValues row_values(const std::optional<Tensor>& tensor, const char* name, int64_t rows, bool per_row_only,
                     const Device& device) {
  if (!tensor) return {};
  require_device(*tensor, name, device);
  const int64_t dim = tensor->dim();
  const int64_t elems = tensor->numel();
  require((dim == 1 && elems == rows) || (!per_row_only && elems == 1), "expected ", name, " of ",
          per_row_only ? rows : int64_t{1}, " elements, got ", *tensor);
  return {tensor->data(), dtype_of(tensor->dtype(), name), elems == 1 ? 0 : tensor->stride(0)};
}

const void* acc_data(const Tensor& tensor, const char* name, int64_t elems, Dtype dtype, const Device& device) {
  require_device(tensor, name, device);
  require(tensor.numel() == elems && tensor.is_contiguous(), "expected a contiguous ", name, " of ", elems,
          " elements, got ", tensor);
  require(dtype_of(tensor.dtype(), name) == acc_dtype(dtype), "expected ", name, " of the accumulation dtype");
  return tensor.data();
}

// One comparison: a negative target is a huge unsigned one.
bool is_wrong(const Problem& problem, int64_t target) {
  return (static_cast<uint64_t>(target) >= static_cast<uint64_t>(problem.classes)) & (target != problem.ignore_index);
}

// Bits of _forward's `outputs`.
constexpr int64_t kZLoss = 1;
constexpr int64_t kLogProb = 2;
constexpr int64_t kLse = 4;
constexpr int64_t kArgmax = 8;
constexpr int64_t kEntropy = 16;

}  // namespace

ForwardTensors ForwardTensors::empty(const ForwardArguments& arguments, const Problem& problem) {
  const int64_t asked = arguments.asked;
  const int32_t loss_type = arguments.loss_type;
  const int32_t acc_type = torch_dtype(acc_dtype(problem.dtype));
  const Device device = arguments.tensors.input.device();
  const auto vector = [&](int64_t elems, int32_t dtype) { return Tensor::empty(1, &elems, dtype, device); };
  const auto loss = [&] {
    return Tensor::empty(problem.reduction == Reduction::kNone ? 1 : 0, &problem.rows, loss_type, device);
  };
  const auto rows_if = [&](int64_t bit, int32_t dtype) { return vector((asked & bit) != 0 ? problem.rows : 0, dtype); };
  const int64_t stats_sizes[] = {2, problem.rows};
  require((asked & kLogProb) == 0 || arguments.tensors.input.dim() == 2, "expected input of shape [N, C], got ",
          arguments.tensors.input);
  return {loss(),
          (asked & kZLoss) != 0 ? loss() : vector(0, loss_type),
          (asked & kLogProb) != 0 ? empty_like(arguments.tensors.input) : vector(0, torch_dtype(problem.dtype)),
          rows_if(kLse, acc_type),
          rows_if(kArgmax, aoti_torch_dtype_int64()),
          rows_if(kEntropy, acc_type),
          Tensor::empty(2, stats_sizes, acc_type, device),
          vector(2, acc_type),
          asked};
}

ForwardOutputs ForwardTensors::pointers() const {
  const auto if_asked = [&](int64_t bit, const Tensor& tensor) {
    return (asked & bit) != 0 ? tensor.mutable_data() : nullptr;
  };
  return {loss.mutable_data(),          if_asked(kZLoss, z_loss), dtype_of(loss.dtype(), "loss"),
          if_asked(kLogProb, log_prob), if_asked(kLse, lse),      static_cast<int64_t*>(if_asked(kArgmax, argmax)),
          if_asked(kEntropy, entropy),  row_stats.mutable_data(), denominators.mutable_data()};
}

void ForwardTensors::hand_over(StableIValue* stack) {
  Tensor* const tensors[] = {&loss, &z_loss, &log_prob, &lse, &argmax, &entropy, &row_stats, &denominators};
  for (Tensor* tensor : tensors) *stack++ = result(std::move(*tensor));
}

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
  const int64_t dim = input.dim();
  require(dim == 2 || dim == 3, "expected input of shape [N, C], got ", input);
  const int64_t positions = dim == 2 ? 1 : input.size(2);
  problem.rows = input.size(0) * positions;
  problem.classes = input.size(1);
  require(problem.classes > 0, "expected input with at least one class, got shape ", input);
  require(terms.reduction >= 0 && terms.reduction <= 2, "expected reduction 0, 1 or 2, got ", terms.reduction);
  problem.reduction = static_cast<Reduction>(terms.reduction);
  problem.ignore_index = terms.ignore_index;
  problem.label_smoothing = terms.label_smoothing;
  problem.z_loss = terms.z_loss;
  problem.softcap = terms.softcap;
  problem.logit_scale = terms.logit_scale;
  const Device device = input.device();
  problem.target = targets_of(tensors.target, problem.rows, device);
  problem.weight = weight_of(tensors.weight, problem.classes, problem.dtype, device);
  if (dim == 2) {
    const StridedRows rows = rows_of(input, problem.classes, result.copy);
    problem.input = rows.data;
    problem.layout = {1, rows.stride_elems, 1};
    return result;
  }
  const bool side_by_side = positions == 1 || input.stride(2) == 1;
  if (!side_by_side) result.copy = input.contiguous_copy();
  const Tensor& planes = side_by_side ? input : *result.copy;
  problem.input = planes.data();
  problem.layout = {positions, planes.stride(0), planes.stride(1)};
  return result;
}

Owning<Gradients> gradients_of(const BackwardArguments& arguments, const Problem& problem) {
  const bool per_row = problem.reduction == Reduction::kNone;
  const Device device = arguments.tensors.input.device();
  Owning<Gradients> result{};
  Gradients& gradients = result.plain;
  gradients.loss = row_values(arguments.loss, "grad_loss", problem.rows, per_row, device);
  gradients.z_loss = row_values(arguments.z_loss, "grad_z_loss", problem.rows, per_row, device);
  gradients.lse = row_values(arguments.lse, "grad_lse", problem.rows, true, device);
  gradients.entropy = row_values(arguments.entropy, "grad_entropy", problem.rows, true, device);
  gradients.row_stats = acc_data(arguments.row_stats, "row_stats", 2 * problem.rows, problem.dtype, device);
  gradients.denominators = acc_data(arguments.denominators, "denominators", 2, problem.dtype, device);
  if (arguments.entropy) {
    require(arguments.entropy_value.has_value(), "expected entropy beside grad_entropy");
    gradients.entropy_value = row_values(arguments.entropy_value, "entropy", problem.rows, true, device);
  }
  if (arguments.log_prob) {
    const Tensor& log_prob = *arguments.log_prob;
    require_device(log_prob, "grad_log_prob", device);
    require(log_prob.dim() == 2 && log_prob.size(0) == problem.rows && log_prob.size(1) == problem.classes &&
                arguments.tensors.input.dim() == 2,
            "expected grad_log_prob of the shape [N, C] of input, got ", log_prob);
    require(dtype_of(log_prob.dtype(), "grad_log_prob") == problem.dtype, "expected grad_log_prob of input's dtype");
    const StridedRows rows = rows_of(log_prob, problem.classes, result.copy);
    gradients.log_prob = rows.data;
    gradients.log_prob_stride_elems = rows.stride_elems;
  }
  return result;
}

void require_targets_in_range(const Problem& problem) {
  // With few classes the targets have as many bytes as the logits, so all threads read them, without a branch.
  constexpr int64_t kGrainRows = 65536;
  struct Look {
    const Problem& problem;
    std::atomic<bool> any_is_wrong{false};
  } look{problem};
  torch_threads().run(
      0, problem.rows, kGrainRows,
      [](int64_t begin, int64_t end, void* context) {
        Look& own = *static_cast<Look*>(context);
        const Targets& target = own.problem.target;
        const auto any_is_wrong = [&](const auto* targets) {
          bool any = false;
          for (int64_t row = begin; row < end; ++row) any |= is_wrong(own.problem, targets[row * target.stride_elems]);
          return any;
        };
        if (target.is_int64 ? any_is_wrong(static_cast<const int64_t*>(target.data))
                            : any_is_wrong(static_cast<const int32_t*>(target.data))) {
          own.any_is_wrong.store(true, std::memory_order_relaxed);
        }
      },
      &look);
  if (!look.any_is_wrong) return;
  int64_t row = 0;
  while (!is_wrong(problem, problem.target[row])) ++row;
  require<std::out_of_range>(false, "target[", row, "] = ", problem.target[row], " is out of bounds for ",
                             problem.classes, " classes: expected 0 <= target < ", problem.classes,
                             " or ignore_index (", problem.ignore_index, ")");
}

Tensor empty_like(const Tensor& logits) {
  const int64_t dim = logits.dim();
  int64_t sizes[kMostDims];
  for (int64_t d = 0; d < dim; ++d) sizes[d] = logits.size(d);
  return Tensor::empty(dim, sizes, logits.dtype(), logits.device());
}

void* contiguous_data(const Tensor& input) {
  require(input.is_contiguous(), "expected a contiguous input to write the gradient over");
  return input.mutable_data();
}

}  // namespace npu_ce
