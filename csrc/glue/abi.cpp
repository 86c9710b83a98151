// SPDX-License-Identifier: Apache-2.0
#include "abi.h"

#include <algorithm>
#include <stdexcept>

#include "torch_compat.h"

namespace npu_ce {
namespace {

// Calls one of the ABI's getters, which write the value through their last parameter.
template <class Value, class Getter, class... Arguments>
Value get(Getter getter, Arguments... arguments) {
  Value value;
  check(getter(arguments..., &value));
  return value;
}

// A tensor keeps its sizes when its storage is freed (untyped_storage().resize_(0), as FSDP frees parameters), and its
// pointer is then invalid.
void require_storage(const Tensor& tensor) {
  if (get<int64_t>(aoti_torch_get_storage_size, tensor.handle()) != 0 || tensor.numel() == 0) return;
  throw std::runtime_error("expected tensors with their values, got shape " + tensor.shape() +
                           " whose storage is freed; leave it as it was until backward is over");
}

}  // namespace

std::string Device::name() const {
  const char* const kind = is_npu() ? "npu" : type == aoti_torch_device_type_cpu() ? "cpu" : "another kind of device";
  return index < 0 ? kind : kind + (":" + std::to_string(index));
}

void check(AOTITorchError error) {
  if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error(torch_exception_get_what_without_backtrace());
}

Tensor::~Tensor() {
  if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
}

Tensor Tensor::empty(int64_t dim, const int64_t* sizes, int32_t dtype, const Device& device) {
  int64_t strides[kMostDims];
  for (int64_t d = dim, stride = 1; d-- > 0; stride *= std::max<int64_t>(sizes[d], 1)) strides[d] = stride;
  AtenTensorHandle handle;
  check(npu_ce::aoti_torch_empty_strided(dim, sizes, strides, dtype, device.type, device.index, &handle));
  return Tensor(handle);
}

int64_t Tensor::dim() const { return get<int64_t>(aoti_torch_get_dim, handle_); }
int64_t Tensor::numel() const { return get<int64_t>(aoti_torch_get_numel, handle_); }
int64_t Tensor::size(int64_t d) const { return get<int64_t>(aoti_torch_get_size, handle_, d); }
int64_t Tensor::stride(int64_t d) const { return get<int64_t>(aoti_torch_get_stride, handle_, d); }
int32_t Tensor::dtype() const { return get<int32_t>(aoti_torch_get_dtype, handle_); }
bool Tensor::is_contiguous() const { return get<bool>(aoti_torch_is_contiguous, handle_); }

const void* Tensor::data() const {
  require_storage(*this);
  return get<const void*>(torch_get_const_data_ptr, handle_);
}

void* Tensor::mutable_data() const {
  require_storage(*this);
  return get<void*>(torch_get_mutable_data_ptr, handle_);
}

Device Tensor::device() const {
  return {get<int32_t>(aoti_torch_get_device_type, handle_), get<int32_t>(aoti_torch_get_device_index, handle_)};
}

std::string Tensor::shape() const {
  std::string text;
  for (int64_t d = 0; d < dim(); ++d) text += (d == 0 ? "" : ", ") + std::to_string(size(d));
  return "[" + text + "]";
}

Tensor Tensor::contiguous_copy(const Device& to) const {
  int64_t sizes[kMostDims];
  for (int64_t d = 0; d < dim(); ++d) sizes[d] = size(d);
  Tensor copy = empty(dim(), sizes, dtype(), to);
  check(npu_ce::aoti_torch_copy_(copy.handle_, handle_, 0));
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

Registration::Registration(const char* dispatch_key, std::initializer_list<NamedKernel> kernels) {
  check(aoti_torch_library_init_impl("npu_ce_jit", dispatch_key, __FILE__, __LINE__, &library_));
  for (const NamedKernel& named : kernels) {
    check(torch_library_impl(library_, named.name, named.kernel, TORCH_ABI_VERSION));
  }
}

Registration::~Registration() { aoti_torch_delete_library_object(library_); }

Parallel torch_threads() {
  const auto run = [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
    check(torch_parallel_for(begin, end, grain, body, context));
  };
  return {run, static_cast<int64_t>(get<uint32_t>(torch_get_num_threads))};
}

}  // namespace npu_ce
