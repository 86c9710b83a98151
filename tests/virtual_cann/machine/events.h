// SPDX-License-Identifier: Apache-2.0
// The event flags of one core: eight for each pair of pipes.
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
  Clock clock{};      // what is known to be over when the flag is set
  Moments moments{};  // the times at which it is set
  Instruction setter;
  bool held = false;
  bool given = false;  // was ever held; a kernel may not use an id that was never given to it
  Instruction holder;
};

class Events {
 public:
  Event& at(Pipe from, Pipe to, uint32_t id) { return pair(from, to)[id]; }
  // The lowest id that is not held.
  std::optional<uint32_t> take(Pipe from, Pipe to, const Instruction& holder);
  bool give(Pipe from, Pipe to, uint32_t id);  // false if it is not held
  void give_all();

  template <class Visit>
  void each(Visit&& visit) const {
    for (int from = 0; from < kPipes; ++from)
      for (int to = 0; to < kPipes; ++to)
        for (uint32_t id = 0; id < kEventIds; ++id)
          visit(static_cast<Pipe>(from), static_cast<Pipe>(to), id, pairs_[from][to][id]);
  }

 private:
  using Pair = std::array<Event, kEventIds>;
  Pair& pair(Pipe from, Pipe to) { return pairs_[static_cast<size_t>(from)][static_cast<size_t>(to)]; }

  std::array<std::array<Pair, kPipes>, kPipes> pairs_;
};

std::string event_name(Pipe from, Pipe to, uint32_t id);  // "V_MTE3 event 2"

}  // namespace virtual_cann
