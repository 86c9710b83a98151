// SPDX-License-Identifier: Apache-2.0
#include "hardware.h"

namespace virtual_cann {
namespace {

constexpr uint64_t kMiB = 1ull << 20;
constexpr uint64_t kGiB = 1ull << 30;

// name, AIC, AIV, clock, HBM, L2: from the platform files of CANN 8.1. They give no clock for Ascend910_93*, which has
// that of its A2 relative here. The share of HBM's rate is 1 but for the 910B4, whose 0.8 TB/s vendors publish.
// Programs must refuse the last two chips by name, so their numbers are only the right order of magnitude.
const Hardware kChips[] = {
    {"Ascend910B1", 24, 48, 1.85e9, 64 * kGiB, 192 * kMiB, 1},
    {"Ascend910B2", 24, 48, 1.80e9, 64 * kGiB, 192 * kMiB, 1},
    {"Ascend910B3", 20, 40, 1.80e9, 64 * kGiB, 192 * kMiB, 1},
    {"Ascend910B4", 20, 40, 1.50e9, 32 * kGiB, 96 * kMiB, 0.5},
    {"Ascend910_9391", 24, 48, 1.85e9, 64 * kGiB, 192 * kMiB, 1},
    {"Ascend910_9392", 24, 48, 1.80e9, 64 * kGiB, 192 * kMiB, 1},
    {"Ascend910_9381", 24, 48, 1.80e9, 64 * kGiB, 192 * kMiB, 1},
    {"Ascend910_9382", 24, 48, 1.80e9, 64 * kGiB, 192 * kMiB, 1},
    {"Ascend910_9372", 20, 40, 1.80e9, 64 * kGiB, 192 * kMiB, 1},
    {"Ascend910_9362", 20, 40, 1.80e9, 32 * kGiB, 168 * kMiB, 1},
    {"Ascend310P3", 8, 7, 1.08e9, 24 * kGiB, 16 * kMiB, 1},
    {"Ascend950", 32, 64, 1.65e9, 128 * kGiB, 128 * kMiB, 1},
};

}  // namespace

const Hardware* hardware_named(const std::string& soc) {
  for (const Hardware& chip : kChips) {
    if (chip.soc == soc) return &chip;
  }
  return nullptr;
}

std::vector<std::string> hardware_names() {
  std::vector<std::string> names;
  for (const Hardware& chip : kChips) names.push_back(chip.soc);
  return names;
}

}  // namespace virtual_cann
