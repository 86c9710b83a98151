// SPDX-License-Identifier: Apache-2.0
// Runs a kernel on every core of a launch and judges it.
#pragma once

#include <cstdint>
#include <functional>

#include "hardware.h"
#include "launch.h"
#include "report.h"

namespace virtual_cann {

struct GmRegion {
  const uint8_t* start;
  uint64_t bytes;
};

// True, and the live allocation that holds the byte, if there is one.
using FindRegion = std::function<bool(const void* pointer, GmRegion* region)>;

struct Options {
  bool auto_sync = false;  // judge as if the compiler had inserted what --cce-auto-sync inserts
  uint32_t every_nth = 1;  // block runs, the last among them; of the others nothing is computed, counted or judged
};

// The body runs for core 0, 1, ... in turn, each to its end or to its next SyncAll: the result is the same every time.
Report run_kernel(const KernelLaunch& launch, const Hardware& hardware, const FindRegion& find_region, Options options);

}  // namespace virtual_cann
