// SPDX-License-Identifier: Apache-2.0
// What the glue asks of CANN's runtime where it is there: functions that some releases lack, or that only headers of
// the toolkit declare. They are weak, so null where the loader finds none; and have names of their own here, which no
// other declaration can contradict.
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

// The number of the task that this thread was the last to put on any stream, and that stream's: they change with what
// is launched and captured, and not with what is refused.
extern "C" int last_task_of_thread(uint32_t* task, uint32_t* stream) __asm__("rtGetTaskIdAndStreamID")
    __attribute__((weak));

}  // namespace npu_ce
