// SPDX-License-Identifier: Apache-2.0
#include "state.h"

#include <algorithm>
#include <utility>

namespace virtual_cann {

namespace {

// "Key features of synchronisation within a core", table 3.
bool compiler_inserts(Pipe from, Pipe to) {
  return from == Pipe::S || to == Pipe::S || (from == Pipe::V && to == Pipe::V);
}

std::string needed_wait(Pipe from, Pipe to) {
  if (from == to) return std::string("PipeBarrier<PIPE_") + pipe_name(from) + ">";
  return pair_name(from, to) + " flag (or PipeBarrier<PIPE_ALL>)";
}

std::string what_may_happen(Rule rule) {
  if (rule == Rule::hazard_raw) return " may be read before it is written";
  if (rule == Rule::hazard_war) return " may be overwritten before it is read";
  return " may be written in either order";
}

}  // namespace

Core::State::State(LaunchState& launch, uint32_t index, Ub& ub)
    : launch(launch),
      index(index),
      ub(ub),
      timelines(launch.hardware, std::min(launch.blocks, launch.hardware.vector_cores)) {}

void Core::State::record(const Instruction& instruction, Pipe on, AtomicMode atomic) {
  if (atomic != last_atomic) atomic_setter = current;
  last_atomic = atomic;
  current = instruction;
  pipe = on;
  order.issue(pipe);
  history.record(order.now(), current);
  timelines.each([&](Timeline& timeline) { timeline.issue(pipe); });
}

void Core::State::violate(Rule rule, std::string expected, std::string got) {
  if (!launch.stopped) launch.verdicts.add(rule, current, index, std::move(expected), std::move(got));
}

void Core::State::stop(Rule rule, std::string expected, std::string got) {
  violate(rule, std::move(expected), std::move(got));
  launch.stopped = true;
  throw KernelStopped{};
}

void Core::State::at_end(AtomicMode atomic) {
  if (atomic != last_atomic) atomic_setter = current;
  if (atomic != AtomicMode::none) {
    current = atomic_setter;
    violate(Rule::atomic_leftover, "SetAtomicNone before the kernel ends", "DMA still adds");
  }
  events.each([&](Pipe from, Pipe to, uint32_t id, const Event& event) {
    if (event.set) {
      current = event.setter;
      violate(Rule::event_leftover, "WaitFlag of " + event_name(from, to, id) + " before the kernel ends",
              "it is set: the next kernel would pass a wait for it");
    }
    if (event.held) {
      current = event.holder;
      violate(Rule::event_owner, "ReleaseEventID of " + event_name(from, to, id) + " before the kernel ends",
              "it is still held");
    }
  });
  launch.caches.drop(index, [&](const Instruction& setter) {
    current = setter;
    violate(Rule::dcache_dirty, "DataCacheCleanAndInvalid before the kernel ends",
            "a line is only in the data cache of core " + std::to_string(index));
  });
}

void Core::State::check_ub(uint32_t address, uint32_t bytes) {
  if (uint64_t{address} + bytes <= ub.allocated()) return;
  stop(Rule::ub_bounds, "bytes below " + std::to_string(ub.allocated()) + ", the end of all buffers",
       "UB bytes " + std::to_string(address) + " to " + std::to_string(uint64_t{address} + bytes));
}

void Core::State::touch_ub(uint32_t address, uint32_t bytes, bool write) {
  ub.touch(address, bytes, [&](Touch& touch, uint32_t byte) {
    const auto report = [&](Rule rule, Access earlier) {
      unordered(rule, earlier, rule, "UB byte " + std::to_string(byte));
    };
    if (write) {
      touch_write(touch, order, false, report);
    } else {
      touch_read(touch, order, report);
    }
  });
}

void Core::State::check_gm(const void* pointer, uint64_t bytes) {
  if (const auto got = launch.memory.outside(pointer, bytes))
    stop(Rule::gm_bounds, std::to_string(bytes) + " bytes inside one live allocation", *got);
}

void Core::State::touch_gm(const void* pointer, uint64_t bytes, bool write, bool atomic) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  gm.update(begin, begin + bytes, [&](Touch& touch, uintptr_t byte) {
    const auto report = [&](Rule rule, Access earlier) {
      unordered(rule, earlier, Rule::gm_order, launch.memory.describe(byte));
    };
    if (write) {
      touch_write(touch, order, atomic, report);
    } else {
      touch_read(touch, order, report);
    }
  });
}

void Core::State::judge(std::optional<CacheFault> fault) {
  if (fault) violate(fault->rule, std::move(fault->expected), std::move(fault->got));
}

void Core::State::judge_race(std::optional<uint32_t> other) {
  if (!other) return;
  violate(Rule::gm_race, "SyncAll between what core " + std::to_string(*other) + " did there and " + current.api,
          "none: either core may be first");
}

void Core::State::unordered(Rule rule, Access earlier, Rule report_as, const std::string& byte) {
  if (launch.options.auto_sync && compiler_inserts(earlier.pipe, pipe)) {
    order.join(pipe, order.when_over(earlier.pipe));
    timelines.wait(pipe, timelines.over(earlier.pipe));
    return;
  }
  violate(report_as, needed_wait(earlier.pipe, pipe) + " between " + history.describe(earlier) + " and " + current.api,
          "none: " + byte + what_may_happen(rule));
  order.assume(earlier);  // one missing wait is reported once
}

}  // namespace virtual_cann
