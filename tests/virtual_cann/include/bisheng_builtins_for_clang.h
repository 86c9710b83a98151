// SPDX-License-Identifier: Apache-2.0
// The keywords of bisheng_builtins.h for clang, which parses the source to check its conversions
// (compiler/conversions.py). clang takes kernel<<<...>>>() as CUDA's launch, in which a kernel may only call device
// functions: so every function from here on is a host and device function.
#pragma once

#pragma clang force_cuda_host_device begin
extern "C" int __cudaPushCallConfiguration(unsigned long, ...);

#define __aicore__ __attribute__((annotate("aicore")))
#define __global__ __attribute__((global))
#define __host__

#define __gm__
#define __ubuf__

#if VIRTUAL_CANN_KNOWS_ASC
#define __vector__ __aicore__
#define __cube__ __aicore__
#define __mix__(cube, vector) __aicore__
#define __schedmode__(mode)
#endif
