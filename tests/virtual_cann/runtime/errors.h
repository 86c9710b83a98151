// SPDX-License-Identifier: Apache-2.0
// Errors of the runtime. They are exceptions inside; the body of every C function is one api() call, which turns an
// exception into the returned code and the text of aclGetRecentErrMsg.
#pragma once

#include <stdexcept>
#include <string>

#include "acl/acl.h"

namespace virtual_cann {

// A feature that the virtual CANN does not have is ACL_ERROR_API_NOT_SUPPORT, never ACL_ERROR_RT_FEATURE_NOT_SUPPORT:
// torch_npu takes the latter for a success with a warning.
struct Error : std::runtime_error {
  Error(aclError code, const std::string& text) : std::runtime_error(text), code(code) {}
  aclError code;
};

// Makes `error` this thread's last error and recent message; returns its code.
aclError record_error(const char* function, const Error& error);

// Throws in a process that was forked from one with a device, because the streams' threads do not exist there.
void check_not_forked();
void watch_for_forks();

template <class Body>
aclError api(const char* function, Body&& body) {
  try {
    check_not_forked();
    body();
    return ACL_SUCCESS;
  } catch (const Error& error) {
    return record_error(function, error);
  } catch (const std::exception& error) {
    return record_error(function, Error(ACL_ERROR_INTERNAL_ERROR, error.what()));
  }
}

// The result of a function that is linked or looked up, but not modelled.
inline aclError refuse(const char* function) {
  return api(function, [] {
    throw Error(ACL_ERROR_API_NOT_SUPPORT, "the virtual CANN does not implement it; run this on an NPU, or do without");
  });
}

// Checks an output pointer that the caller must give.
template <class T>
T& out(T* pointer, const char* name) {
  if (pointer == nullptr) throw Error(ACL_ERROR_RT_PARAM_INVALID, std::string(name) + " must not be null");
  return *pointer;
}

std::string hex(const void* pointer);

}  // namespace virtual_cann
