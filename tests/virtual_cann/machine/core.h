// SPDX-License-Identifier: Apache-2.0
// One vector core. Instructions take effect at once, in program order, so that results are exact and reproducible.
// Whether the hardware guarantees that order is judged separately, by a vector clock for each pipe.
//
// An API header first calls issue(), which names the instruction. It then requests each operand with read(), write() or
// their GM counterparts, which check it and return host memory. It computes on that memory, and reports the amount of
// work by vector_work() or transfer().
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

// The classes of vector instructions that have a rate of their own.
enum class VectorClass : uint8_t { simple, cast, exp, ln, divide, reduce, compare, select, gather, copy };

enum class AtomicMode : uint8_t { none, add };
enum class KernelType : uint8_t { vector_only, mix_vector };

// Thrown where the kernel cannot continue (an access outside of memory): it ends the launch.
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
  // Host memory for [address, address + bytes) of UB, which the current instruction reads or writes. Checks bounds,
  // initialisation and order. The pointer is valid until the instruction ends; for zero bytes it means nothing.
  const uint8_t* read(uint32_t address, uint32_t bytes);
  uint8_t* write(uint32_t address, uint32_t bytes);
  // As write, but the content is undefined afterwards: the bytes are uninitialised and hold junk.
  void scribble(uint32_t address, uint32_t bytes);
  // GM memory that the current DMA or scalar instruction accesses.
  const uint8_t* gm_read(const void* pointer, uint64_t bytes);
  uint8_t* gm_write(void* pointer, uint64_t bytes);
  // Once for each instruction that the hardware would run. `operands` are checked for bank conflicts.
  void vector_work(VectorClass kind, uint64_t repeats, const BankOperands& operands = {});
  // Once for each DMA instruction. `through_l2` is false for a tensor with SetL2CacheHint(CACHE_MODE_DISABLE).
  void transfer(uint64_t bytes, bool through_l2 = true);

  // -- verdicts, on the current instruction
  void violate(Rule rule, std::string expected, std::string got);
  [[noreturn]] void stop(Rule rule, std::string expected, std::string got);

  // -- order
  // wait_flag() stops the core where the hardware would hang, so destructors that call it are noexcept(false).
  void set_flag(Pipe from, Pipe to, uint32_t id);
  void wait_flag(Pipe from, Pipe to, uint32_t id);
  void barrier(Pipe pipe);
  void barrier_all();
  // The time that a pipe loses in a wait inside a call, which no page promises: it costs time, and orders nothing.
  void stall(Pipe pipe, Pipe on);
  void sync_all();
  void set_kernel_type(KernelType type);

  // -- UB and events, for TPipe and the queues
  // Once for each buffer; its size is rounded up to whole blocks. Returns the buffer's address.
  uint32_t allocate_ub(uint32_t bytes);
  void reset_pipe();                        // a new TPipe begins from address 0, and holds no events
  uint32_t take_event(Pipe from, Pipe to);  // the lowest id that is not held
  void give_event(Pipe from, Pipe to, uint32_t id);

  // -- registers
  VectorMask mask;
  AtomicMode atomic = AtomicMode::none;
  const void* atomic_type = nullptr;  // identifies the type: the address of its kTypeMark

  // -- scalar cache
  void clean_and_invalidate(const void* pointer, bool whole_cache);

  // For run.cpp only.
  class State;
  explicit Core(std::unique_ptr<State> state);
  ~Core();
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

}  // namespace virtual_cann
