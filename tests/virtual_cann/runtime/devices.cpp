// SPDX-License-Identifier: Apache-2.0
#include "devices.h"

#include <pthread.h>

#include <cstring>
#include <deque>

#include "settings.h"
#include "streams.h"

namespace virtual_cann {
namespace {

thread_local int current = -1;

// Never destroyed: the streams' threads may outlive main.
std::deque<Device>& devices() {
  static auto* all = [] {
    auto* devices = new std::deque<Device>;
    for (int id = 0; id < settings().devices; ++id) devices->emplace_back(id);
    return devices;
  }();
  return *all;
}

}  // namespace

void Device::lose() {
  std::lock_guard lock(mutex_);
  lost_ = true;
}

bool Device::lost() const {
  std::lock_guard lock(mutex_);
  return lost_;
}

void Device::fail(const Error& error) {
  std::lock_guard lock(mutex_);
  if (!failure_) failure_ = error;
}

void Device::check() const {
  std::lock_guard lock(mutex_);
  if (lost_) {
    throw Error(ACL_ERROR_RT_LOST_HEARTBEAT, "device " + std::to_string(id) + " is lost; end the process");
  }
  if (failure_) throw *failure_;
}

void Device::leave_error(const Error& error) {
  std::lock_guard lock(mutex_);
  if (!left_error_) left_error_ = error;
}

void Device::raise_left_error() {
  std::lock_guard lock(mutex_);
  if (!left_error_) return;
  Error error = *left_error_;
  left_error_.reset();
  throw error;
}

void Device::recover() {
  std::lock_guard lock(mutex_);
  lost_ = false;
  left_error_.reset();
}

Device& device(int id) {
  if (id < 0 || id >= settings().devices) {
    throw Error(ACL_ERROR_RT_INVALID_DEVICEID, "there is no device " + std::to_string(id) +
                                                   ": VIRTUAL_CANN_DEVICES is " + std::to_string(settings().devices));
  }
  return devices()[static_cast<size_t>(id)];
}

Device& current_device() {
  if (current < 0) throw Error(ACL_ERROR_RT_CONTEXT_NULL, "no device is set in this thread; call aclrtSetDevice first");
  return device(current);
}

void check_current_device() {
  if (current >= 0) device(current).check();
}

void keep_error_of_queue_thread(const Error& error) {
  char name[16] = "";
  pthread_getname_np(pthread_self(), name, sizeof name);
  if (current >= 0 && std::strcmp(name, "acl_thread") == 0) device(current).fail(error);
}

}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

aclError aclInit(const char*) {
  return api(__func__, [] {
    static std::mutex mutex;
    static bool initialised = false;
    std::lock_guard lock(mutex);
    settings();
    if (initialised) throw Error(ACL_ERROR_REPEAT_INITIALIZE, "aclInit was called before");
    watch_for_forks();
    initialised = true;
  });
}

// Releases nothing: the devices' memory and streams belong to those who made them.
aclError aclFinalize() {
  return api(__func__, [] {});
}

aclError aclrtGetDeviceCount(uint32_t* count) {
  return api(__func__, [&] { out(count, "count") = static_cast<uint32_t>(settings().devices); });
}

aclError aclrtSetDevice(int32_t id) {
  return api(__func__, [&] { current = device(id).id; });
}

aclError aclrtGetDevice(int32_t* id) {
  return api(__func__, [&] { out(id, "deviceId") = current_device().id; });
}

// aclrtResetDeviceForce also ends what other threads still use; this call does not, so here it only clears errors.
aclError aclrtResetDevice(int32_t id) {
  return api(__func__, [&] {
    device(id).recover();
    if (current == id) current = -1;
  });
}

// Each device has one context, the primary one; its handle is the device.
aclError aclrtGetCurrentContext(aclrtContext* context) {
  return api(__func__, [&] { out(context, "context") = &current_device(); });
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  return api(__func__, [&] {
    for (Device& candidate : devices()) {
      if (&candidate == context) {
        current = candidate.id;
        return;
      }
    }
    throw Error(ACL_ERROR_RT_PARAM_INVALID, hex(context) + " is not a context that aclrtGetCurrentContext gave");
  });
}

aclError aclrtGetPrimaryCtxState(int32_t id, uint32_t* flags, int32_t* active) {
  return api(__func__, [&] {
    device(id);
    if (flags != nullptr) *flags = 0;
    if (active != nullptr) *active = 1;
  });
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t milliseconds) {
  return api(__func__, [&] { synchronize_device(current_device(), milliseconds); });
}

aclError aclrtSynchronizeDevice() {
  return api(__func__, [&] { synchronize_device(current_device(), kForever); });
}

}  // extern "C"
