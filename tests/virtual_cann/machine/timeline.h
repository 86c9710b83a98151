// SPDX-License-Identifier: Apache-2.0
// The begin and end times of one core's instructions: each pipe has a clock, S issues to the others, and flags carry
// times from pipe to pipe. The overlap of double buffering follows from that.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core.h"
#include "memory_share.h"
#include "rates.h"

namespace virtual_cann {

using Cycles = double;
// One timeline for each assumption about the rates, and each of two cases: the launch's data fit the L2, or not. Which
// one applies is known when the launch is over.
constexpr size_t kTimelines = 2 * kAssumptions;
constexpr size_t timeline_of(size_t assumption, bool in_l2) { return 2 * assumption + in_l2; }
using Moments = std::array<Cycles, kTimelines>;

class Timeline {
 public:
  // `running` is the number of cores that share the device memory.
  Timeline(const Hardware& hardware, uint32_t running, const Rates& rates, bool in_l2);

  void issue(Pipe pipe);
  void vector_work(VectorClass kind, uint64_t repeats, uint64_t conflicts);  // cycles lost to bank conflicts
  void transfer(Pipe pipe, uint64_t bytes, bool through_l2);
  void scalar_access(bool cache_miss);

  Cycles over(Pipe pipe) const;  // the end of all instructions issued to the pipe
  Cycles all_over() const;
  void wait(Pipe pipe, Cycles until);
  void wait_all(Cycles until);

  const std::array<Cycles, kPipes>& busy() const { return busy_; }

 private:
  Cycles& at(Pipe pipe) { return time_[static_cast<size_t>(pipe)]; }
  Cycles& busy(Pipe pipe) { return busy_[static_cast<size_t>(pipe)]; }
  void work(Pipe pipe, Cycles cycles);

  const Rates& rates_;
  double l2_bytes_;
  uint32_t running_;
  // Bytes a cycle: the core's share of the memory's bandwidth, and the limits of its pipes.
  double memory_;
  double reading_;
  double writing_;
  MemoryShare memory_share_;
  double read_ = 0;  // bytes
  double read_through_l2_ = 0;
  double written_ = 0;
  Cycles last_read_end_ = 0;
  std::array<Cycles, kPipes> time_{};  // the time at which the pipe can begin its next instruction
  std::array<Cycles, kPipes> busy_{};
};

class Timelines {
 public:
  Timelines(const Hardware& hardware, uint32_t running);

  template <class Change>
  void each(Change&& change) {
    for (Timeline& timeline : timelines_) change(timeline);
  }
  Moments over(Pipe pipe) const;
  Moments all_over() const;
  void wait(Pipe pipe, const Moments& until);
  void wait_all(const Moments& until);
  std::array<Moments, kPipes> busy() const;

 private:
  std::vector<Timeline> timelines_;
};

}  // namespace virtual_cann
