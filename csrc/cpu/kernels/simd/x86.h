// SPDX-License-Identifier: Apache-2.0
// The x86 intrinsics. GCC's <immintrin.h> declares every extension there is, and reading it takes a fifth of a kernel
// unit's compile time, so of its parts only those that the flags allow are read. They insist on being read through it.
#pragma once

#if defined(__clang__) || !__has_include(<avx512fintrin.h>)
#include <immintrin.h>
#else
// clang-format off: each part needs the ones before it.
#define _IMMINTRIN_H_INCLUDED
#include <smmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <f16cintrin.h>
#include <fmaintrin.h>
#if defined(__AVX512F__)
#include <avx512fintrin.h>
#endif
#undef _IMMINTRIN_H_INCLUDED
// clang-format on
#endif
