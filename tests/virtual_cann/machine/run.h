// SPDX-License-Identifier: Apache-2.0
// Runs a kernel on every core of a launch, and judges it.
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

// Whether a live allocation holds the byte, and which.
using FindRegion = std::function<bool(const void* pointer, GmRegion* region)>;

struct Options {
  bool auto_sync = false;  // judge as if --cce-auto-sync had inserted synchronisation
  uint32_t every_nth = 1;  // runs only every nth block, and the last; skipped blocks compute, count and judge nothing
};

// Runs the body for core 0, 1, ... in turn, each to its end or to its next SyncAll, so that results are reproducible.
Report run_kernel(const KernelLaunch& launch, const Hardware& hardware, const FindRegion& find_region, Options options);

}  // namespace virtual_cann
