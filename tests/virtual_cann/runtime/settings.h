// SPDX-License-Identifier: Apache-2.0
// The settings of the virtual machine, from the environment. Nothing else in the runtime reads VIRTUAL_CANN_*.
#pragma once

#include <cstdint>
#include <string>

#include "../machine/hardware.h"

namespace virtual_cann {

struct Settings {
  const Hardware* hardware;  // VIRTUAL_CANN_SOC, Ascend910B2
  int devices;               // VIRTUAL_CANN_DEVICES, 1
  uint64_t memory_bytes;     // VIRTUAL_CANN_MEMORY, of one device; default: the chip's, and half of the host's for all
  bool auto_sync;            // VIRTUAL_CANN_AUTO_SYNC=1
  std::string report_file;   // VIRTUAL_CANN_REPORT, none
};

// Read once, at the first call. Throws Error, at each call, if a variable has an invalid value.
const Settings& settings();

}  // namespace virtual_cann
