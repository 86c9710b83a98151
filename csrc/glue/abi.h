// SPDX-License-Identifier: Apache-2.0
// What the glue needs of torch's stable C ABI. Torch's own C++ wrappers of the same functions (torch/csrc/stable) do
// more, but parsing them takes longer than compiling a unit of this glue.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

#include "problem.h"

namespace npu_ce {

// Throws std::runtime_error with torch's message.
void check(AOTITorchError error);

struct Device {
  int32_t type;  // in torch's numbers: aoti_torch_device_type_cpu() and its like
  int32_t index;

  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool is_npu() const { return type == aoti_torch_device_type_privateuse1(); }
  std::string name() const;  // "cpu", "npu:0"
};

constexpr int64_t kMostDims = 3;  // of the tensors that the operators take

// Owns one reference to a tensor.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(other.release()) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor();

  // Uninitialised, contiguous.
  static Tensor empty(int64_t dim, const int64_t* sizes, int32_t dtype, const Device& device);

  int64_t dim() const;
  int64_t numel() const;
  int64_t size(int64_t d) const;
  int64_t stride(int64_t d) const;
  int32_t dtype() const;  // in torch's numbers: aoti_torch_dtype_float32() and its like
  Device device() const;
  bool is_contiguous() const;
  const void* data() const;
  void* mutable_data() const;
  std::string shape() const;  // "[3, 5]"

  Tensor contiguous_copy() const { return contiguous_copy(device()); }
  Tensor contiguous_copy(const Device& to) const;  // waits for the copy where it leaves an NPU

  AtenTensorHandle handle() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

 private:
  AtenTensorHandle handle_;
};

// The arguments of an operator, in their order. Take each once: a call owns its arguments.
class Stack {
 public:
  explicit Stack(const StableIValue* values) : next_(values) {}

  Tensor tensor() { return Tensor(next<AtenTensorHandle>()); }
  std::optional<Tensor> optional_tensor();
  int64_t integer() { return next<int64_t>(); }
  double real() { return next<double>(); }
  int32_t dtype() { return next<int32_t>(); }

 private:
  template <class T>
  T next() {
    T value;
    std::memcpy(&value, next_++, sizeof(value));
    return value;
  }

  const StableIValue* next_;
};

// Hands a tensor back to torch.
StableIValue result(Tensor tensor);

using BoxedKernel = void (*)(StableIValue* stack, uint64_t arguments, uint64_t results);

struct NamedKernel {
  const char* name;
  BoxedKernel kernel;
};

// Registers kernels of the operators npu_ce_jit::<name> under a dispatch key, as long as it lives.
class Registration {
 public:
  Registration(const char* dispatch_key, std::initializer_list<NamedKernel> kernels);
  ~Registration();
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

 private:
  TorchLibraryHandle library_;
};

// torch's own threads, as many as torch.set_num_threads says.
Parallel torch_threads();

}  // namespace npu_ce
