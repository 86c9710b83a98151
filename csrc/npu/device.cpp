// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "torch_npu_abi.h"

namespace npu_ce {
namespace {

c10::Device npu_of(const Tensor& input) {
  const Device device = input.device();
  if (!device.is_npu()) throw std::runtime_error("expected input on an npu, got " + device.name());
  return {c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device.index)};
}

bool is_plain(int64_t format) {
  switch (format) {
    case ACL_FORMAT_UNDEFINED:
    case ACL_FORMAT_NCHW:
    case ACL_FORMAT_NHWC:
    case ACL_FORMAT_ND:
    case ACL_FORMAT_NDHWC:
    case ACL_FORMAT_NCDHW:
      return true;
    default:
      return false;
  }
}

aclrtStream current_stream(const c10::Device& device) {
  const c10::Stream current = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  const aclrtStream stream = c10_npu::NPUStream::of(current).stream(false);
  // Asked once only: torch's answer waits until the queue is empty.
  static const bool is_torchs = stream == current.native_handle();
  if (!is_torchs) {
    throw std::runtime_error(
        "expected torch_npu's NPUStream to be laid out as that of 2.13.0, got another stream from "
        "it than from torch; install torch_npu 2.13.0, and report this");
  }
  return stream;
}

}  // namespace

void require_plain_format(const Tensor& tensor, const char* name) {
  if (!tensor.device().is_npu()) return;
  // The C ABI's handle is a pointer to a tensor of C++.
  const int64_t format = at_npu::native::get_npu_format(*reinterpret_cast<const at::Tensor*>(tensor.handle()));
  if (is_plain(format)) return;
  const std::string shown = format == ACL_FORMAT_FRACTAL_NZ ? "FRACTAL_NZ" : "number " + std::to_string(format);
  throw std::runtime_error("expected " + std::string(name) + " in a format that its strides tell, got " + shown +
                           " of aclFormat; call torch_npu.npu_format_cast(" + name + ", torch_npu.Format.ND)");
}

NpuGuard::NpuGuard(const Tensor& input) : device_(npu_of(input)), guard_(device_) {}

uint32_t NpuGuard::vector_cores() const {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t& cores = known[device_.index()];
  if (cores == 0) {
    const int error =
        aclGetDeviceCapability(static_cast<uint32_t>(device_.index()), ACL_DEVICE_INFO_VECTOR_CORE_NUM, &cores);
    if (error != ACL_SUCCESS || cores <= 0) {
      throw std::runtime_error("expected aclGetDeviceCapability to tell the vector cores of " + device_.str() +
                               ", got ACL error " + std::to_string(error));
    }
  }
  return static_cast<uint32_t>(cores);
}

void NpuGuard::enqueue(const char* name, std::function<int(void* stream)> launch) const {
  std::function<int()> task = [name, launch = std::move(launch), stream = current_stream(device_)] {
    // A launch returns nothing. What an earlier call left, such as an allocation that was tried again, is not its
    // error.
    aclrtGetLastError(ACL_RT_THREAD_LEVEL);
    int error = launch(stream);
    if (error == ACL_SUCCESS) error = aclrtPeekAtLastError(ACL_RT_THREAD_LEVEL);
    if (error == ACL_SUCCESS) return error;
    const char* meaning = aclGetRecentErrMsg();
    throw std::runtime_error(std::string(name) + ": expected its kernels to be launched, got ACL error " +
                             std::to_string(error) + ": " + (meaning != nullptr ? meaning : "ACL says nothing of it"));
  };
  at_npu::native::OpCommand::RunOpApiV2(name, task);
}

}  // namespace npu_ce
