// SPDX-License-Identifier: Apache-2.0
// The implementation of Core, and the state that the cores of one launch share.
#pragma once

#include <memory>
#include <string>

#include "core.h"
#include "dcache.h"
#include "estimate.h"
#include "events.h"
#include "gm.h"
#include "order.h"
#include "run.h"
#include "timeline.h"
#include "ub.h"
#include "verdicts.h"

namespace virtual_cann {

struct LaunchState {
  LaunchState(const KernelLaunch& launch, const Hardware& hardware, const FindRegion& find_region, Options options)
      : blocks(launch.blocks), hardware(hardware), options(options), memory(find_region), caches(launch.blocks) {}

  uint32_t blocks;
  const Hardware& hardware;
  Options options;
  LiveMemory memory;
  Races races;
  DataCaches caches;
  Banks banks;
  Verdicts verdicts;
  KernelType type = KernelType::vector_only;
  bool stopped = false;  // from then on, cores only unwind and nothing is judged
};

class Core::State {
 public:
  State(LaunchState& launch, uint32_t index, Ub& ub);

  void record(const Instruction& instruction, Pipe pipe, AtomicMode atomic);
  void violate(Rule rule, std::string expected, std::string got);
  [[noreturn]] void stop(Rule rule, std::string expected, std::string got);
  void at_end(AtomicMode atomic);  // the kernel has returned

  // -- memory
  void check_ub(uint32_t address, uint32_t bytes);
  void touch_ub(uint32_t address, uint32_t bytes, bool write);
  void check_gm(const void* pointer, uint64_t bytes);
  void touch_gm(const void* pointer, uint64_t bytes, bool write, bool atomic);
  void judge(std::optional<CacheFault> fault);
  void judge_race(std::optional<uint32_t> other);
  // Reports that the current instruction does not wait for `earlier`, as it must.
  void unordered(Rule rule, Access earlier, Rule report_as, const std::string& byte);

  LaunchState& launch;
  const uint32_t index;
  Ub& ub;
  Instruction current;
  Pipe pipe = Pipe::S;
  Order order;
  History history;
  Events events;
  Intervals<Touch> gm;
  Timelines timelines;
  Counters counters;

  AtomicMode last_atomic = AtomicMode::none;
  Instruction atomic_setter;
};

void make_current(Core* core);

}  // namespace virtual_cann
