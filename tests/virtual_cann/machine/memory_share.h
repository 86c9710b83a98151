// SPDX-License-Identifier: Apache-2.0
// A core's share of HBM, through which its reads and its writes pass together ("Analyse performance data": MTE2 and
// MTE3 share the bandwidth). DMAs come in the order in which they are issued; one that can begin before an earlier one
// does uses the time that is free until then.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

namespace virtual_cann {

class MemoryShare {
 public:
  // When `work` cycles of the share, none of them before `start`, are over.
  double pass(double start, double work) {
    double over = start;
    std::vector<Free> left;
    const auto keep = [&](double begin, double end) {
      if (begin < end) left.push_back({begin, end});
    };
    for (const Free& free : free_) {
      const double begin = std::min(std::max(free.begin, start), free.end);
      const double end = std::min(begin + work, free.end);
      if (begin < end) {
        work -= end - begin;
        over = end;
      }
      keep(free.begin, begin);
      keep(end, free.end);
    }
    if (left.size() > kKept) left.erase(left.begin());
    free_ = std::move(left);
    return over;
  }

 private:
  struct Free {
    double begin;
    double end;
  };
  static constexpr size_t kKept = 16;  // what is older lies before all that can still be issued

  std::vector<Free> free_{{0, std::numeric_limits<double>::infinity()}};  // in order
};

}  // namespace virtual_cann
