// SPDX-License-Identifier: Apache-2.0
// The part of Core that orders instructions: flags, barriers, and cache operations between cores.
#include <utility>

#include "core.h"
#include "fibers.h"
#include "state.h"

namespace virtual_cann {

void Core::set_flag(Pipe from, Pipe to, uint32_t id) {
  State& state = *state_;
  if (state.launch.stopped) return;
  ++state.counters.flags;
  if (id >= kEventIds) {
    violate(Rule::event_ids, "an event from 0 to " + std::to_string(kEventIds - 1), event_name(from, to, id));
    return;
  }
  Event& event = state.events.at(from, to, id);
  if (event.set) {
    violate(Rule::event_set, "WaitFlag of " + event_name(from, to, id) + " before it is set again",
            "it is set, by " + describe(event.setter));
  }
  if (!event.given)
    violate(Rule::event_owner, "an event that AllocEventID or FetchEventID gave", event_name(from, to, id));
  event.set = true;
  event.clock = state.order.when_over(from);
  event.moments = state.timelines.over(from);
  event.setter = state.current;
}

void Core::wait_flag(Pipe from, Pipe to, uint32_t id) {
  State& state = *state_;
  if (state.launch.stopped) return;
  ++state.counters.flags;
  if (id >= kEventIds) {
    violate(Rule::event_ids, "an event from 0 to " + std::to_string(kEventIds - 1), event_name(from, to, id));
    return;
  }
  Event& event = state.events.at(from, to, id);
  if (!event.set)
    stop(Rule::event_wait, "SetFlag of " + event_name(from, to, id) + " before it", "it is clear: the core hangs");
  event.set = false;
  state.order.join(to, event.clock);
  state.timelines.wait(to, event.moments);
}

void Core::barrier(Pipe pipe) {
  State& state = *state_;
  if (state.launch.stopped) return;
  ++state.counters.barriers;
  if (pipe == Pipe::S) {
    violate(Rule::barrier_pipe, "PIPE_V, PIPE_MTE2, PIPE_MTE3 or PIPE_ALL",
            "PIPE_S, which the hardware keeps in order");
    return;
  }
  state.order.barrier(pipe);
  state.timelines.wait(pipe, state.timelines.over(pipe));
}

void Core::barrier_all() {
  State& state = *state_;
  if (state.launch.stopped) return;
  ++state.counters.barriers;
  state.order.barrier_all();
  state.timelines.wait_all(state.timelines.all_over());
  state.gm.clear();
}

void Core::stall(Pipe pipe, Pipe on) {
  if (!state_->launch.stopped) state_->timelines.wait(pipe, state_->timelines.over(on));
}

void Core::sync_all() {
  State& state = *state_;
  if (state.launch.stopped) return;
  const uint32_t cores = state.launch.hardware.vector_cores;
  // Only mix kernels have the scheduler that counts the cores ("SyncAll", "CrossCoreSetFlag").
  if (state.launch.type != KernelType::mix_vector)
    stop(Rule::sync_all_kernel, "KERNEL_TYPE_MIX_AIV_1_0 or __mix__(0, 1)", "a kernel of vector cores only: it hangs");
  if (blocks() > cores) {
    stop(Rule::sync_all_kernel, "at most " + std::to_string(cores) + " blocks, one for each vector core",
         std::to_string(blocks()) + ": those that have no core yet are never reached");
  }
  barrier_all();
  Fiber::yield();
  if (state.launch.stopped) throw KernelStopped{};
}

void Core::set_kernel_type(KernelType type) { state_->launch.type = type; }

uint32_t Core::take_event(Pipe from, Pipe to) {
  State& state = *state_;
  if (state.launch.stopped) return 0;
  if (const auto id = state.events.take(from, to, state.current)) return *id;
  stop(Rule::event_ids, "at most " + std::to_string(kEventIds) + " events of " + pair_name(from, to) + " held",
       std::to_string(kEventIds + 1));
}

void Core::give_event(Pipe from, Pipe to, uint32_t id) {
  State& state = *state_;
  if (state.launch.stopped || state.events.give(from, to, id)) return;
  violate(Rule::event_owner, "an event that AllocEventID gave", event_name(from, to, id) + ", which is not held");
}

void Core::clean_and_invalidate(const void* pointer, bool whole_cache) {
  State& state = *state_;
  if (state.launch.stopped) return;
  const auto written_back = [&](uintptr_t line, uint64_t bytes) {
    state.touch_gm(reinterpret_cast<const void*>(line), bytes, true, false);
  };
  if (whole_cache) {
    state.launch.caches.clean_all(state.index, written_back);
  } else {
    state.launch.caches.clean_line(state.index, pointer, written_back);
  }
}

}  // namespace virtual_cann
