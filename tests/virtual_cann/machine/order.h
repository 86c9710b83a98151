// SPDX-License-Identifier: Apache-2.0
// Which of a core's instructions are known to be over before another begins. Pipes run in parallel, and within a pipe
// an instruction may begin before the one ahead of it has ended ("Overview of synchronisation within a core"): only
// flags and barriers order them. The hardware orders scalar instructions itself ("PipeBarrier").
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core.h"

namespace virtual_cann {

using Sequence = uint32_t;                   // the number of an instruction on its pipe, from 1
using Clock = std::array<Sequence, kPipes>;  // for each pipe, the last instruction that is known to be over

const char* pipe_name(Pipe pipe);
std::string pair_name(Pipe from, Pipe to);  // "V_MTE3"

struct Access {
  Pipe pipe;
  Sequence sequence;  // 0: no access
};

class Order {
 public:
  void issue(Pipe pipe) {
    pipe_ = pipe;
    const Sequence sequence = ++issued_[index(pipe)];
    if (pipe == Pipe::S) known_[index(pipe)][index(pipe)] = sequence - 1;
  }
  Access now() const { return {pipe_, issued_[index(pipe_)]}; }

  // Whether the access is over before the current instruction begins, or is the instruction's own.
  bool over(Access access) const {
    return access.sequence <= known_[index(pipe_)][index(access.pipe)] ||
           (access.pipe == pipe_ && access.sequence == issued_[index(pipe_)]);
  }

  Clock when_over(Pipe pipe) const;  // what is known once all instructions issued to the pipe are over
  void join(Pipe pipe, const Clock& clock);
  void barrier(Pipe pipe) { join(pipe, when_over(pipe)); }
  void barrier_all() { known_.fill(issued_); }
  // From now on, this access counts as over for the current instruction's pipe.
  void assume(Access access);

 private:
  static size_t index(Pipe pipe) { return static_cast<size_t>(pipe); }

  Pipe pipe_ = Pipe::S;
  Clock issued_{};
  std::array<Clock, kPipes> known_{};
};

// The last accesses of a piece of memory. One writer is enough: an earlier write is over before it, or was reported.
struct Touch {
  Sequence written = 0;
  Pipe writer = Pipe::S;
  bool atomic = false;
  Clock read{};

  bool operator==(const Touch& other) const {
    bool same = written == other.written && writer == other.writer && atomic == other.atomic;
    for (int pipe = 0; pipe < kPipes; ++pipe) same &= read[pipe] == other.read[pipe];  // faster than array's memcmp
    return same;
  }
};

// Calls unordered(rule, earlier) for each access that must be over and is not known to be.
template <class Unordered>
void touch_read(Touch& touch, const Order& order, Unordered&& unordered) {
  const Access last{touch.writer, touch.written};
  if (!order.over(last)) unordered(Rule::hazard_raw, last);
  const Access now = order.now();
  touch.read[static_cast<size_t>(now.pipe)] = now.sequence;
}

// A write after a read of the same pipe needs no barrier: a pipe begins its instructions in order, and the manual asks
// for a barrier only where an instruction uses the one before's result, or where DMAs write to the same place.
template <class Unordered>
void touch_write(Touch& touch, const Order& order, bool atomic, Unordered&& unordered) {
  const Access now = order.now();
  bool waits_for_reads = true;
  for (int pipe = 0; pipe < kPipes; ++pipe) {
    const Access read{static_cast<Pipe>(pipe), touch.read[pipe]};
    if (read.pipe == now.pipe || order.over(read)) continue;
    unordered(Rule::hazard_war, read);
    waits_for_reads = false;
  }
  // An instruction that waits for a value's reads also waits for its write.
  const Access last{touch.writer, touch.written};
  if (waits_for_reads && !order.over(last) && !(atomic && touch.atomic)) unordered(Rule::hazard_waw, last);
  touch = Touch{now.sequence, now.pipe, atomic, {}};
}

// An instruction, as reports show it.
struct Instruction {
  const char* api = "kernel";
  Place place{"", 0};
};

std::string file_name(const std::string& path);        // without its directory
std::string describe(const Instruction& instruction);  // "Exp at kernel.asc:41"

// The latest instructions of each pipe, for reports: a hazard is nearly always with one of them.
class History {
 public:
  void record(Access access, const Instruction& instruction);
  std::string describe(Access access) const;

 private:
  static constexpr size_t kLength = 4096;
  struct Entry {
    Sequence sequence;
    Instruction instruction;
  };
  std::array<std::vector<Entry>, kPipes> entries_;
};

}  // namespace virtual_cann
