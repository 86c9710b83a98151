// SPDX-License-Identifier: Apache-2.0
// One vector core. Instructions take effect at once, in program order, so that results are exact and the same every
// time; whether the hardware would have kept that order is judged apart, by a vector clock for each pipe.
//
// The API headers call it like this: issue() names the instruction; then every operand is asked for with read(),
// write() or their GM counterparts, which check it and return host memory; then the work is done on that memory, and
// vector_work() or transfer() says how much it was.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "banks.h"
#include "hardware.h"
#include "report.h"

namespace virtual_cann {

enum class Pipe : uint8_t { S, V, MTE2, MTE3 };
constexpr int kPipes = 4;

// The classes of vector instructions that the rate table tells apart.
enum class VectorClass : uint8_t { simple, cast, exp, ln, divide, reduce, compare, select, gather, copy };

enum class AtomicMode : uint8_t { none, add };
enum class KernelType : uint8_t { vector_only, mix_vector };

// Thrown where there is nothing to go on with (an access outside memory): it ends the launch.
struct KernelStopped {};

struct VectorMask {
  uint64_t low;
  uint64_t high;
  bool counter;  // counter mode: `low` is a number of elements, and repeats are ignored
};

class Core {
 public:
  static Core& current();

  uint32_t index() const;   // GetBlockIdx
  uint32_t blocks() const;  // GetBlockNum

  // -- instructions
  void issue(Pipe pipe, const char* api, Place place);
  // Host memory of [address, address + bytes) of UB, as the current instruction reads or writes it. Checks bounds,
  // initialisation and order. The pointers are valid to the end of the instruction. Zero bytes: any pointer.
  const uint8_t* read(uint32_t address, uint32_t bytes);
  uint8_t* write(uint32_t address, uint32_t bytes);
  // Like write, for bytes whose content is then undefined: they become uninitialised, and hold junk.
  void scribble(uint32_t address, uint32_t bytes);
  // GM, as the current DMA or scalar instruction sees it.
  const uint8_t* gm_read(const void* pointer, uint64_t bytes);
  uint8_t* gm_write(void* pointer, uint64_t bytes);
  // Once for each instruction that the hardware would run. `operands` are those whose banks it competes for.
  void vector_work(VectorClass kind, uint64_t repeats, const BankOperands& operands = {});
  // Once for each DMA instruction. `through_l2` is false for a tensor with SetL2CacheHint(CACHE_MODE_DISABLE).
  void transfer(uint64_t bytes, bool through_l2 = true);

  // -- verdicts: of the current instruction
  void violate(Rule rule, std::string expected, std::string got);
  [[noreturn]] void stop(Rule rule, std::string expected, std::string got);

  // -- order
  // wait_flag() stops the core where the hardware would hang: a destructor that calls it is noexcept(false).
  void set_flag(Pipe from, Pipe to, uint32_t id);
  void wait_flag(Pipe from, Pipe to, uint32_t id);
  void barrier(Pipe pipe);
  void barrier_all();
  // The time that a pipe loses where the headers wait inside a call, and no page promises it: nothing is ordered.
  void stall(Pipe pipe, Pipe on);
  void sync_all();
  void set_kernel_type(KernelType type);

  // -- UB and events, for TPipe and the queues
  // One call for each buffer: rounded up to whole blocks; address of the buffer.
  uint32_t allocate_ub(uint32_t bytes);
  void reset_pipe();                        // a new TPipe begins from address 0, and holds no events
  uint32_t take_event(Pipe from, Pipe to);  // the lowest id that is not held
  void give_event(Pipe from, Pipe to, uint32_t id);

  // -- registers
  VectorMask mask;
  AtomicMode atomic = AtomicMode::none;
  const void* atomic_type = nullptr;  // what tells it from other types

  // -- scalar cache
  void clean_and_invalidate(const void* pointer, bool whole_cache);

  // The rest is for run.cpp.
  class State;
  explicit Core(std::unique_ptr<State> state);
  ~Core();
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

}  // namespace virtual_cann
