// SPDX-License-Identifier: Apache-2.0
// Functions of CANN's runtime that the glue calls where they exist: some releases lack them, or only headers of the
// toolkit declare them. They are weak, so null where the loader finds none, and have names of their own here, so that
// other declarations cannot conflict.
#pragma once

#include <acl/acl.h>

#include <cstdint>

namespace npu_ce {

// aclrtDevResLimitType
constexpr int32_t kVectorCores = 1;

// How many cores the stream's work may take: the limit that was set on it, else the process's on its device, else all.
// CANN 8.1 lacks it.
extern "C" aclError stream_resource_limit(aclrtStream stream, int32_t resource,
                                          uint32_t* value) __asm__("aclrtGetStreamResLimit") __attribute__((weak));

// The number of the last task that this thread has put on any stream, and that stream's. They change when a launch is
// accepted or captured, and not when it is refused.
extern "C" int last_task_of_thread(uint32_t* task, uint32_t* stream) __asm__("rtGetTaskIdAndStreamID")
    __attribute__((weak));

}  // namespace npu_ce
