// SPDX-License-Identifier: Apache-2.0
// A core's share of HBM's bandwidth, used by reads and writes together ("Analyse performance data": MTE2 and MTE3 share
// it), in the order in which they begin. That differs from the order in which they are issued: a write that waits for
// the vector unit does not delay the next tile's read, which can begin before it.
#pragma once

#include <algorithm>
#include <vector>

namespace virtual_cann {

class MemoryShare {
 public:
  // The time at which `work` cycles of the share are done, if they begin at `start` or later. Work that is passed later
  // and begins earlier should have come first: earlier results stay, and over() includes both.
  double pass(double start, double work) {
    const auto later = [](double start, const Work& other) { return start < other.start; };
    const auto place = waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), start, later), {start, work});
    const double over = done(place + 1);
    if (waiting_.size() > kKept) {
      over_ = done(waiting_.begin() + 1);
      waiting_.erase(waiting_.begin());
    }
    return over;
  }
  double over() const { return done(waiting_.end()); }

 private:
  struct Work {
    double start;
    double cycles;
  };
  static constexpr size_t kKept = 16;  // older work begins before any that can still be issued

  double done(std::vector<Work>::const_iterator end) const {
    double over = over_;
    for (auto work = waiting_.begin(); work != end; ++work) over = std::max(over, work->start) + work->cycles;
    return over;
  }

  std::vector<Work> waiting_;  // by start
  double over_ = 0;            // the end of the work that is no longer in waiting_
};

}  // namespace virtual_cann
