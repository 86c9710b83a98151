// SPDX-License-Identifier: Apache-2.0
// Fault injection. VIRTUAL_CANN_FAULTS and virtual_cann_set_faults take a comma-separated list; empty for no faults:
//   launch=N       the Nth kernel launch from now fails on the device, with the vector core exception
//   refuse=N       the Nth kernel launch from now is refused at once, and nothing of it reaches the stream
//   lost=N         a device is lost when it has run N tasks from now: nothing but freeing works on it any more
//   malloc=N       the Nth device allocation from now, and all after it, find no memory (torch_npu tries twice)
//   slow=Nms|Nus   every task of every stream takes that much longer, from now on
// Tasks are copies, fills, operators and kernels, but not records of events or waits for them. N is an integer from 1
// to 1000000000. Each name may occur once.
#pragma once

#include <chrono>

namespace virtual_cann {

// Throws Error and changes nothing if the text is not of that grammar.
void set_faults(const char* text);

enum class LaunchFault { none, refused, fails };

// To be called once for each launch or allocation: whether this one must fail.
LaunchFault fault_of_launch();
bool allocation_must_fail();

// To be called once for each task of a device: whether the device is lost before it.
bool task_loses_device(int device);
std::chrono::microseconds task_delay();

}  // namespace virtual_cann
