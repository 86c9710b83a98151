// SPDX-License-Identifier: Apache-2.0
#include "order.h"

#include <algorithm>

namespace virtual_cann {

const char* pipe_name(Pipe pipe) {
  static constexpr const char* kNames[kPipes] = {"S", "V", "MTE2", "MTE3"};
  return kNames[static_cast<size_t>(pipe)];
}

std::string pair_name(Pipe from, Pipe to) { return std::string(pipe_name(from)) + "_" + pipe_name(to); }

Clock Order::when_over(Pipe pipe) const {
  Clock clock = known_[index(pipe)];
  clock[index(pipe)] = issued_[index(pipe)];
  return clock;
}

void Order::join(Pipe pipe, const Clock& clock) {
  Clock& known = known_[index(pipe)];
  for (int other = 0; other < kPipes; ++other) known[other] = std::max(known[other], clock[other]);
}

void Order::assume(Access access) {
  Sequence& known = known_[index(pipe_)][index(access.pipe)];
  known = std::max(known, access.sequence);
}

std::string file_name(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

std::string describe(const Instruction& instruction) {
  return std::string(instruction.api) + " at " + file_name(instruction.place.file) + ":" +
         std::to_string(instruction.place.line);
}

void History::record(Access access, const Instruction& instruction) {
  auto& entries = entries_[static_cast<size_t>(access.pipe)];
  if (entries.size() < kLength) {
    entries.push_back({access.sequence, instruction});
  } else {
    entries[(access.sequence - 1) % kLength] = {access.sequence, instruction};
  }
}

std::string History::describe(Access access) const {
  const auto& entries = entries_[static_cast<size_t>(access.pipe)];
  const Entry& entry = entries[(access.sequence - 1) % kLength];
  if (entry.sequence == access.sequence) return virtual_cann::describe(entry.instruction);
  return std::string("an instruction of ") + pipe_name(access.pipe) + " long before";
}

}  // namespace virtual_cann
