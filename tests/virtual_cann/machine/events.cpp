// SPDX-License-Identifier: Apache-2.0
#include "events.h"

#include <utility>

namespace virtual_cann {

std::optional<uint32_t> Events::take(Pipe from, Pipe to) {
  auto& held = pair(from, to).held;
  for (uint32_t id = 0; id < kEventIds; ++id) {
    if (!held[id]) {
      held[id] = true;
      return id;
    }
  }
  return std::nullopt;
}

bool Events::give(Pipe from, Pipe to, uint32_t id) {
  return id < kEventIds && std::exchange(pair(from, to).held[id], false);
}

std::string event_name(Pipe from, Pipe to, uint32_t id) { return pair_name(from, to) + " event " + std::to_string(id); }

}  // namespace virtual_cann
