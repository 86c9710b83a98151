// SPDX-License-Identifier: Apache-2.0
// bisheng's built-in keywords; the virtual compiler includes this file before the source. They become marks in the
// preprocessed text, which the compiler reads, checks, and removes before g++ sees them. A generation has only the
// keywords of its compiler: __vector__ does not compile before 8.5, as with the real one.
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
