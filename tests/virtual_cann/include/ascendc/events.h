// SPDX-License-Identifier: Apache-2.0
// Flags between pipes, and barriers within a pipe.
#pragma once

#include "machine/core.h"
#include "types.h"

enum event_t : uint32_t { EVENT_ID0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };
enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };

namespace AscendC {

using TEventID = int8_t;

// Pairs of a vector core's pipes: the one that sets the flag, and the one that waits for it.
enum class HardEvent : uint8_t {
  S_V,
  S_MTE2,
  S_MTE3,
  V_S,
  V_V,
  V_MTE2,
  V_MTE3,
  MTE2_S,
  MTE2_V,
  MTE2_MTE3,
  MTE3_S,
  MTE3_V,
  MTE3_MTE2
};

}  // namespace AscendC

namespace virtual_cann::api {

struct PipePair {
  Pipe from;
  Pipe to;
};

constexpr PipePair pipes_of(AscendC::HardEvent event) {
  constexpr PipePair pairs[] = {
      {Pipe::S, Pipe::V},       {Pipe::S, Pipe::MTE2},    {Pipe::S, Pipe::MTE3}, {Pipe::V, Pipe::S},
      {Pipe::V, Pipe::V},       {Pipe::V, Pipe::MTE2},    {Pipe::V, Pipe::MTE3}, {Pipe::MTE2, Pipe::S},
      {Pipe::MTE2, Pipe::V},    {Pipe::MTE2, Pipe::MTE3}, {Pipe::MTE3, Pipe::S}, {Pipe::MTE3, Pipe::V},
      {Pipe::MTE3, Pipe::MTE2},
  };
  return pairs[static_cast<uint8_t>(event)];
}

// Sets a flag and waits for it at once, as the real headers do inside some instructions.
inline void order_pipes(Core& core, Pipe from, Pipe to) {
  const uint32_t id = core.take_event(from, to);
  core.give_event(from, to, id);
  core.set_flag(from, to, id);
  core.wait_flag(from, to, id);
}

}  // namespace virtual_cann::api

namespace AscendC {

template <HardEvent event>
void SetFlag(int32_t eventID, Place place = Place::here()) {
  using namespace virtual_cann::api;
  Core& core = Core::current();
  core.issue(Pipe::S, "SetFlag", place);
  if constexpr (event == HardEvent::V_V)
    core.barrier(
        Pipe::V);  // a pipe has no flag for itself: the real headers put a barrier here, and nothing at WaitFlag
  else
    core.set_flag(pipes_of(event).from, pipes_of(event).to, static_cast<uint32_t>(eventID));
}

template <HardEvent event>
void WaitFlag(int32_t eventID, Place place = Place::here()) {
  using namespace virtual_cann::api;
  Core& core = Core::current();
  core.issue(Pipe::S, "WaitFlag", place);
  if constexpr (event != HardEvent::V_V)
    core.wait_flag(pipes_of(event).from, pipes_of(event).to, static_cast<uint32_t>(eventID));
}

template <pipe_t pipe>
void PipeBarrier(Place place = Place::here()) {
  using namespace virtual_cann::api;
  Core& core = Core::current();
  core.issue(Pipe::S, "PipeBarrier", place);
  if constexpr (pipe == PIPE_ALL)
    core.barrier_all();
  else
    core.barrier(static_cast<Pipe>(pipe));
}

}  // namespace AscendC
