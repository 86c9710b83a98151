// SPDX-License-Identifier: Apache-2.0
// The costs of instructions. The values are frozen: changing one changes every estimate that was ever compared. An
// uncertain value has a range, and estimates are given for its ends too.
//
// README: the published sample add_high_performance, x + y of 8192 x 8192 halves in seven cases, measured on an A2 with
// 48 vector cores at 1.85 GHz; rates that it does not give follow from its times. RMSNorm: published constants,
// measured for an add and RMSNorm on 40 vector cores of an unnamed chip. fla: pull request 942 of
// flash-linear-attention, elementwise operators of three sizes on an Atlas 800T A3.
#pragma once

#include <array>
#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "core.h"

namespace virtual_cann {

struct Rate {
  const char* name;
  double value;
  double fast;  // the end of the range at which kernels take least time; slow: most
  double slow;
  const char* unit;
  bool documented;  // by a page or a published measurement; a guess ranges from half to double
  const char* source;
  const char* moves_with = nullptr;  // the name of another rate: both move together, as one range
};

inline constexpr Rate kRates[] = {
    // -- device memory, shared by all running cores
    // For a launch that moves more than half of the L2's size; times the chip's share (hardware.cpp).
    {"hbm", 1.6e12, 1.6e12, 0.98e12, "bytes/s", true,
     "L2 Cache tiling: GM; README case 4, through the L2: 1.607e12; RMSNorm: 1.41e12 of 132 MB, 0.98e12 of 2.5 GB"},
    // For a launch that moves less, and may find its data in the L2.
    {"l2", 1.6e12, 2.0e12, 1.6e12, "bytes/s", true, "as hbm; RMSNorm: 1.95e12 to 2.05e12 of 30 to 80 MB"},
    // While reads bypass the L2, writes that it absorbs cost HBM nothing: then only this rate limits reads and writes.
    {"read_and_write", 2.3456e12, 2.3456e12, 2.3456e12, "bytes/s", true, "README case 6; MTE3 alone in cases 2 and 3"},

    // -- DMA of one core
    {"dma", 32, 32, 32, "bytes/cycle", true, "platform configuration: DDR read and write rate of a core"},
    {"dma_of_l2", 32, 64, 32, "bytes/cycle", true, "as dma; platform configuration: 110 out of the L2, 64 out of UB",
     "l2"},
    // A copy takes the time of this many bytes more.
    {"short_copy", 0, 0, 3072, "bytes", true, "RMSNorm: 1, 2 and 4 KB at 25, 44 and 62 % of the rate"},
    // Two reads in a row, and a pause: in README's cases 1, 2 and 3 they took 379, 631 and 2160 ns; the rates above
    // give 277, 492 and 1966 ns. Only reads have it: MTE3 took 159 and 667 ns, where the rates give 167 and 669.
    {"read_latency", 190, 190, 350, "cycles", true, "README case 1: 0.10 us; 0.14 and 0.19 when all cores read"},

    // -- vector instructions: cycles to start one, then cycles for each repeat
    // An Add of r repeats took 22 + r cycles in case 6, and 22 + 2r in cases 1, 2 and 5, where x and y share bank
    // groups.
    {"vector_start", 22, 22, 22, "cycles", true, "README cases 1, 2, 5 and 6"},
    {"bank_conflict", 1, 0.8, 1.4, "cycles/conflict", true,
     "README cases 5 and 6; README of bank_conflict_ub: 0.8 to 1.4"},
    // in the order of VectorClass
    {"simple", 1, 1, 1, "cycles/repeat", true, "README: 128 halves a cycle"},
    {"cast", 1, 0.5, 2, "cycles/repeat", false, "moves no more than a simple one"},
    {"exp", 4, 2, 8, "cycles/repeat", false, "no page"},
    {"ln", 4, 2, 8, "cycles/repeat", false, "no page"},
    {"divide", 4, 2, 8, "cycles/repeat", false, "no page"},
    {"reduce", 2, 1, 4, "cycles/repeat", false, "Choose instructions of low latency: slower than an Add"},
    {"compare", 1, 0.5, 2, "cycles/repeat", false, "moves no more than a simple one"},
    {"select", 1, 0.5, 2, "cycles/repeat", false, "moves no more than a simple one"},
    {"gather", 16, 8, 32, "cycles/repeat", false, "a row of the UB for every few elements"},
    {"copy", 1, 0.5, 2, "cycles/repeat", false, "moves no more than a simple one"},

    // -- scalar unit
    {"issue", 3, 1.5, 6, "cycles", false, "README case 1: 26 cycles for a loop of some ten instructions"},
    {"scalar_access", 11, 11, 11, "cycles", true, "README case 0: 34 cycles for 2 GetValue, a sum, a SetValue"},
    {"cache_miss", 190, 95, 380, "cycles", false, "the latency of a read by DMA"},

    // -- launch: the larger of a cost that is independent of the number of cores, and one that grows with it
    {"launch", 0, 1.7, 2.8, "us", true, "RMSNorm: 1.7 on any number of cores; fla: 2.8"},
    {"launch_on_cores", 12.9, 0, 12.9, "us on all", true, "README cases 4 to 6: task less MTE2 time, 11.7 to 13.5",
     "launch"},
    {"launch_mix_on_cores", 20.5, 0, 20.5, "us on all", true, "Analyse performance data: 20 to 21 us", "launch"},
};
constexpr size_t kRateCount = std::size(kRates);

using Rates = std::array<double, kRateCount>;

constexpr size_t rate_named(std::string_view name) {
  size_t index = 0;
  while (name != kRates[index].name) ++index;  // beyond the table: no constant, so that it does not compile
  return index;
}

// What an estimate assumes about the rates: first the table; then all rates at their fast, then all at their slow ends;
// then each range alone, at each end that differs from the table's value.
struct Assumption {
  std::string name;  // "table", "fast", "slow", "exp fast", ...
  Rates rates;
};
const std::vector<Assumption>& assumptions();

// The number of assumptions, for arrays with an element for each.
constexpr size_t count_assumptions() {
  size_t count = 3;
  for (const Rate& rate : kRates) {
    if (rate.moves_with == nullptr) count += (rate.fast != rate.value) + (rate.slow != rate.value);
  }
  return count;
}
constexpr size_t kAssumptions = count_assumptions();

}  // namespace virtual_cann
