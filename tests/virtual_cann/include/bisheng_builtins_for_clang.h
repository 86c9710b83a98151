// SPDX-License-Identifier: Apache-2.0
// The same words as in bisheng_builtins.h, for clang, which reads the source beside g++ to judge types
// (compiler/conversions.py). It takes kernel<<<...>>>() for CUDA's, whose kernels may call device functions only: every
// function is one from here on.
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
