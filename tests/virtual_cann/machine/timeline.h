// SPDX-License-Identifier: Apache-2.0
// When the instructions of one core begin and end: each pipe has a time, S starts the others, and flags carry times
// from one pipe to another, so that the overlap of double buffering shows by itself.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core.h"
#include "memory_share.h"
#include "rates.h"

namespace virtual_cann {

using Cycles = double;
// By the table, with half of every guessed rate, and with double.
constexpr int kEstimates = 3;
using Moments = std::array<Cycles, kEstimates>;

class Timeline {
 public:
  // `running` cores share the device memory; a guessed cost is multiplied by `guess`.
  Timeline(const Hardware& hardware, uint32_t running, double guess);

  void issue(Pipe pipe);
  void vector_work(VectorClass kind, uint64_t repeats, uint64_t conflicts);  // cycles lost to bank conflicts
  void transfer(Pipe pipe, uint64_t bytes, bool through_l2);
  void scalar_access(bool cache_miss);

  Cycles over(Pipe pipe) const;  // when all that the pipe was given is over
  Cycles all_over() const;
  void wait(Pipe pipe, Cycles until);
  void wait_all(Cycles until);

  const std::array<Cycles, kPipes>& busy() const { return busy_; }

 private:
  Cycles& at(Pipe pipe) { return time_[static_cast<size_t>(pipe)]; }
  Cycles& busy(Pipe pipe) { return busy_[static_cast<size_t>(pipe)]; }
  void work(Pipe pipe, Cycles cycles);
  double cost(const Rate& rate) const { return rate.documented ? rate.value : rate.value * guess_; }

  double dma_rate(const Rate& memory) const;  // of one pipe alone, in bytes a cycle

  double hertz_;
  double l2_bytes_;
  uint32_t running_;
  double guess_;
  MemoryShare hbm_;
  double read_ = 0;  // bytes
  double read_through_l2_ = 0;
  double written_ = 0;
  Cycles last_read_end_ = 0;
  std::array<Cycles, kPipes> time_{};  // when the pipe can begin its next instruction
  std::array<Cycles, kPipes> busy_{};
};

// The same for each of the estimates.
class Timelines {
 public:
  Timelines(const Hardware& hardware, uint32_t running);

  template <class Change>
  void each(Change&& change) {
    for (int i = 0; i < kEstimates; ++i) change(timelines_[i], i);
  }
  Moments over(Pipe pipe) const;
  Moments all_over() const;
  void wait(Pipe pipe, const Moments& until);
  void wait_all(const Moments& until);
  const std::array<Cycles, kPipes>& busy() const { return timelines_[0].busy(); }

 private:
  std::vector<Timeline> timelines_;
};

}  // namespace virtual_cann
