// SPDX-License-Identifier: Apache-2.0
// The event flags of one core: eight of each pair of pipes.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "order.h"
#include "timeline.h"

namespace virtual_cann {

struct Event {
  bool set = false;
  Clock clock{};      // what is over when the flag is set
  Moments moments{};  // when it is set
  Instruction setter;
};

class Events {
 public:
  Event& at(Pipe from, Pipe to, uint32_t id) { return pair(from, to).events[id]; }
  std::optional<uint32_t> take(Pipe from, Pipe to);  // the lowest id that is not held
  bool give(Pipe from, Pipe to, uint32_t id);        // false if it is not held

  template <class Visit>
  void each_set(Visit&& visit) const {
    for (int from = 0; from < kPipes; ++from)
      for (int to = 0; to < kPipes; ++to)
        for (uint32_t id = 0; id < kEventIds; ++id)
          if (const Event& event = pairs_[from][to].events[id]; event.set)
            visit(static_cast<Pipe>(from), static_cast<Pipe>(to), id, event);
  }

 private:
  struct Pair {
    std::array<Event, kEventIds> events;
    std::array<bool, kEventIds> held{};
  };
  Pair& pair(Pipe from, Pipe to) { return pairs_[static_cast<size_t>(from)][static_cast<size_t>(to)]; }

  std::array<std::array<Pair, kPipes>, kPipes> pairs_;
};

std::string event_name(Pipe from, Pipe to, uint32_t id);  // "V_MTE3 event 2"

}  // namespace virtual_cann
