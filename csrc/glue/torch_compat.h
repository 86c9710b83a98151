// SPDX-License-Identifier: Apache-2.0
// Functions that torch's C ABI has gained since the oldest torch that is supported, with the same names and meaning,
// for versions that lack them; each under the version that brought it. All other code is written for the newest torch
// and checks no version. With the newest, this file has only includes and native_handle. abi.cpp and npu/device.cpp
// include it.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/version.h>

#include <utility>

#define NPU_CE_TORCH_SINCE(minor) (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= (minor))

#if NPU_CE_TORCH_SINCE(10)
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/version.h>
#endif

#if !NPU_CE_TORCH_SINCE(13)
#include <ATen/core/Tensor.h>
#include <ATen/ops/copy.h>
#include <ATen/ops/empty_strided.h>

#include <exception>
#include <string>
#endif

#if !NPU_CE_TORCH_SINCE(10)
#include <ATen/Parallel.h>  // this header has the OpenMP regions, so the unit is compiled with -fopenmp
#endif

namespace npu_ce {

#if !NPU_CE_TORCH_SINCE(13)

inline thread_local std::string caught_message;

template <class Body>
AOTITorchError catching(const Body& body) {
  try {
    body();
    return AOTI_TORCH_SUCCESS;
  } catch (const c10::Error& error) {
    caught_message = error.what_without_backtrace();
  } catch (const std::exception& error) {
    caught_message = error.what();
  }
  return AOTI_TORCH_FAILURE;
}

inline const char* torch_exception_get_what_without_backtrace() { return caught_message.c_str(); }

// The C ABI's handle is a pointer to a tensor of C++.
inline at::Tensor& tensor_of(AtenTensorHandle handle) { return *reinterpret_cast<at::Tensor*>(handle); }

// Older versions have these two, but no access to the message of what they caught: "out of memory" would be lost.
inline AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                               int32_t device_type, int32_t device_index, AtenTensorHandle* result) {
  return catching([&] {
    const c10::Device device(static_cast<c10::DeviceType>(device_type), static_cast<c10::DeviceIndex>(device_index));
    const auto options = at::TensorOptions().device(device).dtype(static_cast<at::ScalarType>(dtype));
    const auto length = static_cast<size_t>(dim);
    at::Tensor tensor = at::empty_strided({sizes, length}, {strides, length}, options);
    *result = reinterpret_cast<AtenTensorHandle>(new at::Tensor(std::move(tensor)));
  });
}

inline AOTITorchError aoti_torch_copy_(AtenTensorHandle self, AtenTensorHandle source, int32_t non_blocking) {
  return catching([&] { tensor_of(self).copy_(tensor_of(source), non_blocking != 0); });
}

inline AOTITorchError torch_delete_stable_ivalue(StableIValue* value) {
  delete value;  // torch allocated it with new
  return AOTI_TORCH_SUCCESS;
}

#else

using ::aoti_torch_copy_;
using ::aoti_torch_empty_strided;

#endif

#if !NPU_CE_TORCH_SINCE(10)

inline AOTITorchError torch_library_impl(TorchLibraryHandle self, const char* name,
                                         void (*kernel)(StableIValue*, uint64_t, uint64_t), uint64_t) {
  return aoti_torch_library_impl(self, name, kernel);
}

inline AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                                         void (*body)(int64_t, int64_t, void*), void* context) {
  return catching(
      [&] { at::parallel_for(begin, end, grain, [&](int64_t from, int64_t to) { body(from, to, context); }); });
}

inline AOTITorchError torch_get_num_threads(uint32_t* result) {
  *result = static_cast<uint32_t>(at::get_num_threads());
  return AOTI_TORCH_SUCCESS;
}

inline AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** result) {
  return catching([&] { *result = tensor_of(tensor).const_data_ptr(); });
}

inline AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** result) {
  return catching([&] { *result = tensor_of(tensor).mutable_data_ptr(); });
}

#endif

#if !NPU_CE_TORCH_SINCE(8)
inline AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool* result) {
  return catching([&] { *result = tensor_of(tensor).is_contiguous(); });
}
#endif

// c10::Stream::native_handle, since 2.13; before, null: torch has it since 2.11, torch_npu implements it in 2.13.
template <class Stream>
void* native_handle(const Stream& stream) {
#if NPU_CE_TORCH_SINCE(13)
  return stream.native_handle();
#else
  static_cast<void>(stream);
  return nullptr;
#endif
}

}  // namespace npu_ce
