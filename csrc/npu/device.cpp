// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "glue/torch_compat.h"
#include "launch_check.h"
#include "runtime_abi.h"
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
  // Asked once only, because torch waits until the queue is empty before it answers.
  static const void* const torchs = native_handle(current);
  static const bool differs = torchs != nullptr && torchs != stream;
  if (differs) {
    throw std::runtime_error(
        "expected torch_npu's NPUStream to hold torch's stream and nothing else, got another stream from it than from "
        "torch; install a torch_npu that docs/compatibility.md lists, and report this");
  }
  return stream;
}

uint32_t vector_cores_of(const c10::Device& device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t& cores = known[device.index()];
  if (cores == 0) {
    const int error =
        aclGetDeviceCapability(static_cast<uint32_t>(device.index()), ACL_DEVICE_INFO_VECTOR_CORE_NUM, &cores);
    if (error != ACL_SUCCESS || cores <= 0) {
      throw std::runtime_error("expected aclGetDeviceCapability to tell the vector cores of " + device.str() +
                               ", got ACL error " + std::to_string(error));
    }
  }
  return static_cast<uint32_t>(cores);
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

NpuGuard::NpuGuard(const Tensor& input) : device_(npu_of(input)), guard_(device_), stream_(current_stream(device_)) {}

uint32_t NpuGuard::vector_cores() const {
  const uint32_t all = vector_cores_of(device_);
  uint32_t limit = 0;
  const bool known = stream_resource_limit != nullptr &&
                     stream_resource_limit(stream_, kVectorCores, &limit) == ACL_SUCCESS && limit > 0;
  return known ? std::min(all, limit) : all;
}

void NpuGuard::enqueue(const char* name, std::function<int(void* stream)> launch) const {
  std::function<int()> task = [name, launch = std::move(launch), stream = stream_] {
    const LaunchCheck check;
    const std::string problem = check.problem(launch(stream));
    if (problem.empty()) return ACL_SUCCESS;
    throw std::runtime_error(std::string(name) + ": expected its kernels to be launched, got " + problem);
  };
  at_npu::native::OpCommand::RunOpApiV2(name, task);
}

}  // namespace npu_ce
