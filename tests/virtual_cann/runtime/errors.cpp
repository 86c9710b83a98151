// SPDX-License-Identifier: Apache-2.0
#include "errors.h"

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <sstream>
#include <utility>

#include "devices.h"

namespace virtual_cann {
namespace {

std::atomic<bool> forked{false};
thread_local aclError last_error = ACL_SUCCESS;
thread_local std::string recent_message;

}  // namespace

aclError record_error(const char* function, const Error& error) {
  last_error = error.code;
  recent_message =
      "[virtual CANN] " + std::string(function) + " failed (" + std::to_string(error.code) + "): " + error.what();
  keep_error_of_queue_thread(Error(error.code, recent_message));
  return error.code;
}

void check_not_forked() {
  if (forked) {
    throw Error(ACL_ERROR_RT_CONTEXT_NULL,
                "this process was forked from one that had initialised the device, which CANN does not survive; start "
                "it with spawn, or keep it off the device");
  }
}

void watch_for_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  if (registered != 0) throw Error(ACL_ERROR_INTERNAL_ERROR, "pthread_atfork failed");
}

std::string hex(const void* pointer) {
  std::ostringstream text;
  text << "0x" << std::hex << reinterpret_cast<uintptr_t>(pointer);
  return text.str();
}

}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

// The text of this thread's last error; reading it clears it.
const char* aclGetRecentErrMsg() {
  thread_local std::string given;
  given = std::exchange(recent_message, "");
  return given.empty() ? nullptr : given.c_str();
}

aclError aclrtPeekAtLastError(aclrtLastErrLevel level) {
  return level == ACL_RT_THREAD_LEVEL ? last_error : ACL_ERROR_INVALID_PARAM;
}

aclError aclrtGetLastError(aclrtLastErrLevel level) {
  return level == ACL_RT_THREAD_LEVEL ? std::exchange(last_error, ACL_SUCCESS) : ACL_ERROR_INVALID_PARAM;
}

}  // extern "C"
