// SPDX-License-Identifier: Apache-2.0
// What bisheng knows before it reads the first line; the virtual one includes this file first. The keywords become
// marks that it reads in the preprocessed text, checks, and takes out again before g++ sees them. A generation lacks
// what its compiler lacks: code that uses __vector__ fails in CANN 8.1 as it does with the real one.
#pragma once

#define __aicore__ __attribute__((virtual_cann_aicore))
#define __global__ __attribute__((virtual_cann_global))
#define __host__ __attribute__((virtual_cann_host))

#define __gm__ __attribute__((virtual_cann_gm))
#define __ubuf__ __attribute__((virtual_cann_ubuf))

#if VIRTUAL_CANN_KNOWS_ASC
#define __vector__ __attribute__((virtual_cann_vector))
#define __cube__ __attribute__((virtual_cann_cube))
#define __mix__(cube, vector) __attribute__((virtual_cann_mix(cube, vector)))
#define __schedmode__(mode) __attribute__((virtual_cann_schedmode(mode)))
#endif
