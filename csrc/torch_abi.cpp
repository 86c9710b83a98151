// SPDX-License-Identifier: Apache-2.0
#include "torch_abi.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/version.h>

#include <stdexcept>

namespace npu_ce {
namespace {

// Calls one of the ABI's getters, whose last parameter is where the value goes.
template <class Value, class Getter, class... Arguments>
Value get(Getter getter, Arguments... arguments) {
  Value value;
  check(getter(arguments..., &value));
  return value;
}

}  // namespace

void check(AOTITorchError error) {
  if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error(torch_exception_get_what_without_backtrace());
}

Tensor::~Tensor() {
  if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
}

Tensor Tensor::empty(int64_t dim, const int64_t* sizes, int32_t dtype) {
  int64_t strides[2] = {dim == 2 ? sizes[1] : 1, 1};
  AtenTensorHandle handle;
  check(aoti_torch_empty_strided(dim, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

int64_t Tensor::dim() const { return get<int64_t>(aoti_torch_get_dim, handle_); }
int64_t Tensor::numel() const { return get<int64_t>(aoti_torch_get_numel, handle_); }
int64_t Tensor::size(int64_t d) const { return get<int64_t>(aoti_torch_get_size, handle_, d); }
int64_t Tensor::stride(int64_t d) const { return get<int64_t>(aoti_torch_get_stride, handle_, d); }
int32_t Tensor::dtype() const { return get<int32_t>(aoti_torch_get_dtype, handle_); }
bool Tensor::is_contiguous() const { return get<bool>(aoti_torch_is_contiguous, handle_); }
const void* Tensor::data() const { return get<const void*>(torch_get_const_data_ptr, handle_); }
void* Tensor::mutable_data() const { return get<void*>(torch_get_mutable_data_ptr, handle_); }

bool Tensor::is_cpu() const {
  return get<int32_t>(aoti_torch_get_device_type, handle_) == aoti_torch_device_type_cpu();
}

std::string Tensor::shape() const {
  std::string text;
  for (int64_t d = 0; d < dim(); ++d) text += (d == 0 ? "" : ", ") + std::to_string(size(d));
  return "[" + text + "]";
}

Tensor Tensor::contiguous_copy() const {
  const int64_t sizes[2] = {size(0), size(1)};
  Tensor copy = empty(2, sizes, dtype());
  check(aoti_torch_copy_(copy.handle_, handle_, 0));
  return copy;
}

std::optional<Tensor> Stack::optional_tensor() {
  StableIValue* value = next<StableIValue*>();
  if (value == nullptr) return std::nullopt;
  Tensor tensor = Stack(value).tensor();
  check(torch_delete_stable_ivalue(value));
  return tensor;
}

StableIValue result(Tensor tensor) {
  const AtenTensorHandle handle = tensor.release();
  StableIValue value = 0;
  std::memcpy(&value, &handle, sizeof(handle));
  return value;
}

CpuRegistration::CpuRegistration(std::initializer_list<NamedKernel> kernels) {
  check(aoti_torch_library_init_impl("npu_ce_jit", "CPU", __FILE__, __LINE__, &library_));
  for (const NamedKernel& named : kernels) {
    check(torch_library_impl(library_, named.name, named.kernel, TORCH_ABI_VERSION));
  }
}

CpuRegistration::~CpuRegistration() { aoti_torch_delete_library_object(library_); }

Parallel torch_threads() {
  const auto run = [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
    check(torch_parallel_for(begin, end, grain, body, context));
  };
  return {run, static_cast<int64_t>(get<uint32_t>(torch_get_num_threads))};
}

}  // namespace npu_ce
