// SPDX-License-Identifier: Apache-2.0
// A core's share of HBM, through which its reads and its writes pass together ("Analyse performance data": MTE2 and
// MTE3 share the bandwidth), in the order in which they begin. That is not the order in which they are issued: a write
// that waits for the vector unit does not hold up the next tile's read, which can begin before it.
#pragma once

#include <algorithm>
#include <vector>

namespace virtual_cann {

class MemoryShare {
 public:
  // When `work` cycles of the share, none of them before `start`, are over. Work that comes later and begins earlier
  // would have been let through first; what was said before stays, and over() has both.
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
  static constexpr size_t kKept = 16;  // what is older begins before all that can still be issued

  double done(std::vector<Work>::const_iterator end) const {
    double over = over_;
    for (auto work = waiting_.begin(); work != end; ++work) over = std::max(over, work->start) + work->cycles;
    return over;
  }

  std::vector<Work> waiting_;  // by start
  double over_ = 0;            // of all that is not kept
};

}  // namespace virtual_cann
