// SPDX-License-Identifier: Apache-2.0
// Limits can be set and read, but limit nothing: a launch says its number of blocks itself. CANN 8.1 has none of these
// functions.
#include "settings.h"
#include "streams.h"

namespace virtual_cann {
namespace {

// The stream whose limits this thread asked to use.
thread_local std::weak_ptr<Stream> used_in_thread;

uint32_t cores(aclrtDevResLimitType kind) {
  const Hardware& hardware = *settings().hardware;
  if (kind == ACL_RT_DEV_RES_CUBE_CORE) return static_cast<uint32_t>(hardware.cube_cores);
  if (kind == ACL_RT_DEV_RES_VECTOR_CORE) return static_cast<uint32_t>(hardware.vector_cores);
  throw Error(ACL_ERROR_RT_PARAM_INVALID, "there is no kind of cores " + std::to_string(kind) + ": expected 0 or 1");
}

uint32_t limit(const Device& device, aclrtDevResLimitType kind) {
  const uint32_t all = cores(kind);
  return device.limits.get(kind).value_or(all);
}

// A stream's limit may exceed its device's.
uint32_t limit(const Stream& stream, aclrtDevResLimitType kind) {
  const uint32_t of_device = limit(stream.device, kind);
  return stream.limits.get(kind).value_or(of_device);
}

void set(CoreLimits& limits, aclrtDevResLimitType kind, uint32_t value) {
  if (value > cores(kind)) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID, "a limit of " + std::to_string(value) + " cores: expected at most the " +
                                                std::to_string(cores(kind)) + " that there are");
  }
  limits.set(kind, value);
}

}  // namespace
}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

aclError aclrtSetDeviceResLimit(int32_t id, aclrtDevResLimitType kind, uint32_t value) {
  return api(__func__, [&] { set(device(id).limits, kind, value); });
}

aclError aclrtGetDeviceResLimit(int32_t id, aclrtDevResLimitType kind, uint32_t* value) {
  return api(__func__, [&] { out(value, "value") = limit(device(id), kind); });
}

aclError aclrtResetDeviceResLimit(int32_t id) {
  return api(__func__, [&] { device(id).limits.reset(); });
}

aclError aclrtSetStreamResLimit(aclrtStream stream, aclrtDevResLimitType kind, uint32_t value) {
  return api(__func__, [&] { set(live_stream(stream)->limits, kind, value); });
}

aclError aclrtGetStreamResLimit(aclrtStream stream, aclrtDevResLimitType kind, uint32_t* value) {
  return api(__func__, [&] { out(value, "value") = limit(*live_stream(stream), kind); });
}

aclError aclrtResetStreamResLimit(aclrtStream stream) {
  return api(__func__, [&] { live_stream(stream)->limits.reset(); });
}

aclError aclrtUseStreamResInCurrentThread(aclrtStream stream) {
  return api(__func__, [&] { used_in_thread = live_stream(stream); });
}

aclError aclrtUnuseStreamResInCurrentThread(aclrtStream stream) {
  return api(__func__, [&] {
    if (used_in_thread.lock() == live_stream(stream)) used_in_thread.reset();
  });
}

aclError aclrtGetResInCurrentThread(aclrtDevResLimitType kind, uint32_t* value) {
  return api(__func__, [&] {
    const std::shared_ptr<Stream> used = used_in_thread.lock();
    out(value, "value") = used && used->limits.get(kind) ? limit(*used, kind) : limit(current_device(), kind);
  });
}

}  // extern "C"
