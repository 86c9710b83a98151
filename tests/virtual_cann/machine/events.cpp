// SPDX-License-Identifier: Apache-2.0
#include "events.h"

#include <utility>

namespace virtual_cann {

std::optional<uint32_t> Events::take(Pipe from, Pipe to, const Instruction& holder) {
  for (uint32_t id = 0; id < kEventIds; ++id) {
    Event& event = at(from, to, id);
    if (event.held) continue;
    event.held = event.given = true;
    event.holder = holder;
    return id;
  }
  return std::nullopt;
}

bool Events::give(Pipe from, Pipe to, uint32_t id) {
  return id < kEventIds && std::exchange(at(from, to, id).held, false);
}

void Events::give_all() {
  for (auto& row : pairs_)
    for (Pair& pair : row)
      for (Event& event : pair) event.held = false;
}

std::string event_name(Pipe from, Pipe to, uint32_t id) { return pair_name(from, to) + " event " + std::to_string(id); }

}  // namespace virtual_cann
