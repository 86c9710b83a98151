// SPDX-License-Identifier: Apache-2.0
#include "launch_check.h"

#include <atomic>
#include <optional>

#include "runtime_abi.h"

namespace npu_ce {
namespace {

// The number of the last task that this thread has put on a stream, with the number of that stream: a launch that is
// accepted changes it. 0 where the runtime does not say.
uint64_t last_task() {
  uint32_t task = 0, stream = 0;
  if (last_task_of_thread == nullptr || last_task_of_thread(&task, &stream) != 0) return 0;
  return uint64_t{stream} << 32 | task;
}

// Whether this runtime numbers tasks, which is certain once a thread has seen two numbers. Else no launch would ever
// seem accepted.
bool numbers_tasks(uint64_t task) {
  static std::atomic<bool> numbered{false};
  thread_local std::optional<uint64_t> earlier;
  if (earlier && *earlier != task) numbered = true;
  earlier = task;
  return numbered;
}

std::string reported(aclError error, const char* meaning) {
  return "ACL error " + std::to_string(error) + ": " + (meaning != nullptr ? meaning : "ACL says nothing of it");
}

}  // namespace

LaunchCheck::LaunchCheck() : earlier_error_(aclrtPeekAtLastError(ACL_RT_THREAD_LEVEL)), earlier_task_(last_task()) {
  numbers_tasks(earlier_task_);
}

std::string LaunchCheck::problem(int error) const {
  const aclError last_error = aclrtPeekAtLastError(ACL_RT_THREAD_LEVEL);
  if (error == ACL_SUCCESS && last_error != earlier_error_) error = last_error;
  if (error != ACL_SUCCESS) return reported(error, aclGetRecentErrMsg());
  const uint64_t task = last_task();
  if (task != earlier_task_ || !numbers_tasks(task)) return {};
  // A launch may fail with the very error that was there before, or with none: where CANN 8.5.0 could not register the
  // kernels, which it does within the first launch, every later launch does nothing.
  if (last_error == ACL_SUCCESS) return "nothing on its stream and no error of ACL's; see what CANN has printed";
  return "nothing on its stream, and the error that was there before: " + reported(last_error, aclGetRecentErrMsg());
}

}  // namespace npu_ce
