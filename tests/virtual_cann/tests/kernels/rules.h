// SPDX-License-Identifier: Apache-2.0
// Included by all rule kernels. A rule kernel is named rule__verdict__what: a `broken` one breaks that rule and no
// other; a `legal` one comes as close to it as the manual allows. x and y have 64 KiB of GM each, n is 256.
#pragma once

#include "kernel_operator.h"

using namespace AscendC;

#define RULE_KERNEL(rule, verdict, what, blocks)                                                     \
  extern "C" void launch_##rule##__##verdict##__##what(void* stream, void* x, void* y, uint32_t n) { \
    rule##__##verdict##__##what<<<blocks, nullptr, stream>>>((GM_ADDR)x, (GM_ADDR)y, n);             \
  }
