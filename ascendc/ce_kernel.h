// SPDX-License-Identifier: Apache-2.0
// How a kernel's declaration says that it needs vector cores only. Each release of the compiler has its own way, which
// the build defines; undefined, the compiler finds out by itself.
#pragma once

#ifndef NPU_CE_VECTOR
#define NPU_CE_VECTOR
#endif
