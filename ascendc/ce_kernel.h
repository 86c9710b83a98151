// SPDX-License-Identifier: Apache-2.0
// How a kernel says that it needs vector cores only. Each release of the compiler has its own way, so the build defines
// both; undefined, the compiler finds out by itself.
#pragma once

#ifndef NPU_CE_VECTOR
#define NPU_CE_VECTOR  // in the declaration
#endif
#ifndef NPU_CE_KERNEL_TYPE
#define NPU_CE_KERNEL_TYPE  // the first statement
#endif
