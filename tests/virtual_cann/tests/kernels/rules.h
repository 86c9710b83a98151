// SPDX-License-Identifier: Apache-2.0
// What every file of rule kernels includes. A rule kernel is named rule__verdict__what: `broken` ones break that rule
// and no other, `legal` ones come as near to it as the manual allows. x and y are 64 KiB of GM each, n is 256.
#pragma once

#include "kernel_operator.h"

using namespace AscendC;

#define RULE_KERNEL(rule, verdict, what, blocks)                                                     \
  extern "C" void launch_##rule##__##verdict##__##what(void* stream, void* x, void* y, uint32_t n) { \
    rule##__##verdict##__##what<<<blocks, nullptr, stream>>>((GM_ADDR)x, (GM_ADDR)y, n);             \
  }
