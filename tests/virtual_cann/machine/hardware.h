// SPDX-License-Identifier: Apache-2.0
// The chips that the virtual CANN can imitate, and the limits of every A2 and A3 vector core, from the manual.
// docs/virtual-npu.md names the source of each number.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace virtual_cann {

struct Hardware {
  std::string soc;        // as aclrtGetSocName spells it
  uint32_t cube_cores;    // AIC
  uint32_t vector_cores;  // AIV
  double hertz;           // clock of a vector core
  uint64_t hbm_bytes;
  uint64_t l2_bytes;
  double hbm_share;  // share of the rate `hbm` in rates.h
};

// Null for an unknown name.
const Hardware* hardware_named(const std::string& soc);
std::vector<std::string> hardware_names();

constexpr uint32_t kUbBytes = 192 * 1024;
// 256 bytes belong to the system; the top 8 KiB are scratch of the compiler, for Select and others.
constexpr uint32_t kUsableUbBytes = kUbBytes - 256 - 8 * 1024;
constexpr uint32_t kBlockBytes = 32;    // the unit of UB addresses and strides
constexpr uint32_t kRepeatBytes = 256;  // what a repeat reads of one operand
constexpr uint32_t kMaxRepeats = 255;
constexpr uint32_t kMaxBuffers = 64;  // of all queues of a kernel (TPipe::InitBuffer)
constexpr uint32_t kEventIds = 8;     // of one pair of pipes
constexpr uint32_t kDcacheLineBytes = 64;

}  // namespace virtual_cann
