// SPDX-License-Identifier: Apache-2.0
// What the kernels need of torch's stable C ABI. Torch's own C++ wrappers of the same functions (torch/csrc/stable) do
// more, and reading them takes longer than compiling all of this glue.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

#include "cpu/problem.h"

namespace npu_ce {

// Throws std::runtime_error with what torch says.
void check(AOTITorchError error);

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

  // On the CPU, uninitialised, contiguous.
  static Tensor empty(int64_t dim, const int64_t* sizes, int32_t dtype);

  int64_t dim() const;
  int64_t numel() const;
  int64_t size(int64_t d) const;
  int64_t stride(int64_t d) const;
  int32_t dtype() const;  // in torch's numbers: aoti_torch_dtype_float32() and its like
  bool is_cpu() const;
  bool is_contiguous() const;
  const void* data() const;
  void* mutable_data() const;
  std::string shape() const;  // "[3, 5]"

  Tensor contiguous_copy() const;

  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

 private:
  AtenTensorHandle handle_;
};

// The arguments of an operator in their order. Each is taken once: the call owns what it is handed.
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

// Registers kernels of the operators npu_ce_jit::<name> for the CPU, as long as it lives.
class CpuRegistration {
 public:
  explicit CpuRegistration(std::initializer_list<NamedKernel> kernels);
  ~CpuRegistration();
  CpuRegistration(const CpuRegistration&) = delete;
  CpuRegistration& operator=(const CpuRegistration&) = delete;

 private:
  TorchLibraryHandle library_;
};

// torch's own threads, as many as torch.set_num_threads says.
Parallel torch_threads();

}  // namespace npu_ce
