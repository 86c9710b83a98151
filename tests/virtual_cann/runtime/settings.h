// SPDX-License-Identifier: Apache-2.0
// What the environment says about the machine to be. The only reader of VIRTUAL_CANN_* in the runtime.
#pragma once

#include <cstdint>
#include <string>

#include "../machine/hardware.h"

namespace virtual_cann {

struct Settings {
  const Hardware* hardware;  // VIRTUAL_CANN_SOC, Ascend910B2
  int devices;               // VIRTUAL_CANN_DEVICES, 1
  uint64_t memory_bytes;  // VIRTUAL_CANN_MEMORY, of one device: the chip's, but no more than half of the host's by all
  bool auto_sync;         // VIRTUAL_CANN_AUTO_SYNC=1
  std::string report_file;  // VIRTUAL_CANN_REPORT, none
};

// Read once, at the first call. Throws Error, each time, if a variable holds what it must not.
const Settings& settings();

}  // namespace virtual_cann
