// SPDX-License-Identifier: Apache-2.0
// What instructions cost. The numbers are frozen: a change of one changes every estimate that was ever compared.
//
// README is that of the published sample add_high_performance: x + y of 8192 x 8192 halves in seven cases, measured on
// an A2 of 48 vector cores at 1.85 GHz. Where it gives no rate itself, the rate follows from its times.
#pragma once

#include "core.h"

namespace virtual_cann {

struct Rate {
  double value;
  const char* unit;
  bool documented;  // by a page or a published measurement; a guess is varied to show what it decides
  const char* source;
};

// -- device memory, shared by all cores that run
inline constexpr Rate kHbm = {1.6e12, "bytes/s", true, "L2 Cache tiling: GM; README case 4, through the L2: 1.607e12"};
// Writes that the L2 takes up cost HBM nothing while reads go round the L2. Then this limits both together.
inline constexpr Rate kReadAndWrite = {2.3456e12, "bytes/s", true, "README case 6; MTE3 alone in cases 2 and 3"};

// -- DMA of one core
inline constexpr Rate kDma = {32, "bytes/cycle", true, "platform configuration: DDR read and write rate of a core"};
// Two reads in a row, and a pause: README cases 1, 2 and 3 took 379, 631 and 2160 ns for what takes 277, 492 and 1966
// ns at the rates above.
// It is of reads only: MTE3 took 159 and 667 ns for what takes 167 and 669.
inline constexpr Rate kReadLatency = {190, "cycles", true, "README case 1: 0.10 us; 0.14 and 0.19 when all cores read"};

// -- vector instructions: cycles to begin one, then cycles a repeat
// An Add of r repeats took 22 + r cycles in case 6, and 22 + 2r in cases 1, 2 and 5, where x and y share bank groups.
inline constexpr Rate kVectorStart = {22, "cycles", true, "README cases 1, 2, 5 and 6"};
inline constexpr Rate kBankConflict = {1, "cycles/conflict", true,
                                       "README cases 5 and 6; README of bank_conflict_ub: 0.8 to 1.4"};
inline constexpr Rate kVector[] = {
    // in the order of VectorClass
    {1, "cycles/repeat", true, "simple; README: 128 halves a cycle"},
    {1, "cycles/repeat", false, "cast: moves no more than a simple one"},
    {4, "cycles/repeat", false, "exp"},
    {4, "cycles/repeat", false, "ln"},
    {4, "cycles/repeat", false, "divide"},
    {2, "cycles/repeat", false, "reduce; Choose instructions of low latency: slower than an Add"},
    {1, "cycles/repeat", false, "compare: moves no more than a simple one"},
    {1, "cycles/repeat", false, "select: moves no more than a simple one"},
    {16, "cycles/repeat", false, "gather: a row of the UB for every few elements"},
    {1, "cycles/repeat", false, "copy: moves no more than a simple one"},
};

// -- scalar unit
inline constexpr Rate kIssue = {3, "cycles", false, "README case 1: 26 cycles for a loop of some ten instructions"};
inline constexpr Rate kScalarAccess = {11, "cycles", true,
                                       "README case 0: 34 cycles for 2 GetValue, a sum, a SetValue"};
inline constexpr Rate kCacheMiss = {190, "cycles", false, "the latency of a read by DMA"};

// -- launch, with all cores
inline constexpr Rate kLaunchVector = {12.9, "us", true, "README cases 4 to 6: task less MTE2 time, 11.7 to 13.5"};
inline constexpr Rate kLaunchMix = {20.5, "us", true, "Analyse performance data: 20 to 21 us"};

}  // namespace virtual_cann
