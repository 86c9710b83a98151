// SPDX-License-Identifier: Apache-2.0
#include "core.h"

#include <stdexcept>
#include <utility>

#include "state.h"

namespace virtual_cann {

namespace {

thread_local Core* current_core = nullptr;

}  // namespace

void make_current(Core* core) { current_core = core; }

Core::Core(std::unique_ptr<State> state) : mask{~uint64_t{0}, ~uint64_t{0}, false}, state_(std::move(state)) {}
Core::~Core() = default;

Core& Core::current() {
  if (current_core == nullptr) throw std::logic_error("Ascend C was called outside of a kernel");
  return *current_core;
}

uint32_t Core::index() const { return state_->index; }
uint32_t Core::blocks() const { return state_->launch.blocks; }

void Core::issue(Pipe pipe, const char* api, Place place) { state_->record({api, place}, pipe, atomic); }

const uint8_t* Core::read(uint32_t address, uint32_t bytes) {
  State& state = *state_;
  if (bytes == 0) return state.ub.at(0);
  state.check_ub(address, bytes);
  if (const auto byte = state.ub.first_unwritten(address, bytes))
    violate(Rule::ub_uninitialised, "bytes that were written before", "UB byte " + std::to_string(*byte) + " was not");
  state.touch_ub(address, bytes, false);
  if (state.pipe == Pipe::S) {
    ++state.counters.scalar_ub_accesses;
    state.timelines.each([](Timeline& timeline) { timeline.scalar_access(false); });
  }
  return state.ub.at(address);
}

uint8_t* Core::write(uint32_t address, uint32_t bytes) {
  State& state = *state_;
  if (bytes == 0) return state.ub.at(0);
  state.check_ub(address, bytes);
  state.ub.mark_written(address, bytes);
  state.touch_ub(address, bytes, true);
  if (state.pipe == Pipe::S) {
    ++state.counters.scalar_ub_accesses;
    state.timelines.each([](Timeline& timeline) { timeline.scalar_access(false); });
  }
  return state.ub.at(address);
}

void Core::scribble(uint32_t address, uint32_t bytes) {
  if (bytes == 0) return;
  write(address, bytes);
  state_->ub.poison(address, bytes);
}

const uint8_t* Core::gm_read(const void* pointer, uint64_t bytes) {
  State& state = *state_;
  if (bytes == 0) return static_cast<const uint8_t*>(pointer);
  state.check_gm(pointer, bytes);
  if (state.pipe == Pipe::S) {
    ++state.counters.scalar_gm_accesses;
    const auto access = state.launch.caches.read(state.index, pointer, bytes);
    state.timelines.each([&](Timeline& timeline) { timeline.scalar_access(access.miss); });
    state.judge(access.fault);
  } else {
    state.judge(state.launch.caches.dma_read(pointer, bytes));
  }
  state.touch_gm(pointer, bytes, false, false);
  state.judge_race(state.launch.races.read(state.index, pointer, bytes));
  return static_cast<const uint8_t*>(pointer);
}

uint8_t* Core::gm_write(void* pointer, uint64_t bytes) {
  State& state = *state_;
  if (bytes == 0) return static_cast<uint8_t*>(pointer);
  state.check_gm(pointer, bytes);
  const bool is_scalar = state.pipe == Pipe::S;
  const bool adds = !is_scalar && atomic == AtomicMode::add;
  bool shared = false;
  if (is_scalar) {
    ++state.counters.scalar_gm_accesses;
    const auto access = state.launch.caches.write(state.index, pointer, bytes, state.current);
    state.timelines.each([&](Timeline& timeline) { timeline.scalar_access(access.miss); });
    shared = access.fault && access.fault->rule == Rule::dcache_shared;
    state.judge(access.fault);
  } else {
    state.judge(state.launch.caches.dma_write(pointer, bytes));
  }
  state.touch_gm(pointer, bytes, true, adds);
  const auto other = state.launch.races.write(state.index, pointer, bytes, adds);
  if (!shared) state.judge_race(other);
  return static_cast<uint8_t*>(pointer);
}

void Core::vector_work(VectorClass kind, uint64_t repeats, const BankOperands& operands) {
  State& state = *state_;
  ++state.counters.vector_instructions;
  state.counters.vector_repeats += repeats;
  const BankConflicts& conflicts = state.launch.banks.conflicts(operands);
  state.counters.bank_conflicts += conflicts;
  state.timelines.each([&](Timeline& timeline) { timeline.vector_work(kind, repeats, conflicts.cycles); });
}

void Core::transfer(uint64_t bytes, bool through_l2) {
  State& state = *state_;
  ++state.counters.dma_sizes[bytes];
  if (state.pipe == Pipe::MTE2) {
    ++state.counters.dma_reads;
    state.counters.gm_bytes_read += bytes;
  } else {
    ++state.counters.dma_writes;
    state.counters.gm_bytes_written += bytes;
  }
  state.timelines.each([&](Timeline& timeline) { timeline.transfer(state.pipe, bytes, through_l2); });
}

void Core::violate(Rule rule, std::string expected, std::string got) {
  state_->violate(rule, std::move(expected), std::move(got));
}

void Core::stop(Rule rule, std::string expected, std::string got) {
  state_->stop(rule, std::move(expected), std::move(got));
}

uint32_t Core::allocate_ub(uint32_t bytes) {
  State& state = *state_;
  if (state.launch.stopped) return 0;
  if (state.ub.buffers() == kMaxBuffers)
    stop(Rule::ub_buffers, "at most " + std::to_string(kMaxBuffers) + " buffers", std::to_string(kMaxBuffers + 1));
  if (const auto address = state.ub.allocate(bytes)) return *address;
  stop(Rule::ub_capacity, "at most " + std::to_string(kUsableUbBytes) + " bytes of UB in all",
       std::to_string(bytes) + " bytes behind " + std::to_string(state.ub.allocated()) + " that are taken");
}

void Core::reset_pipe() {
  state_->ub.free_all();
  state_->events.give_all();
}

}  // namespace virtual_cann
