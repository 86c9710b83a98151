// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "fibers.h"
#include "state.h"

namespace virtual_cann {

namespace {

// A core from its first to its last instruction; another core then reuses its UB.
struct RunningCore {
  std::unique_ptr<Ub> ub;
  std::unique_ptr<Core> core;
  std::unique_ptr<Fiber> fiber;
};

class Run {
 public:
  Run(const KernelLaunch& launch, const Hardware& hardware, const FindRegion& find_region, Options options)
      : launch_(launch),
        every_nth_(options.every_nth),
        state_(launch, hardware, find_region, options),
        times_(launch.blocks) {
    report_.kernel = launch.kernel;
    report_.blocks = launch.blocks;
    report_.cores.resize(launch.blocks);
  }

  Report run() {
    const uint32_t first = (launch_.blocks - 1) % every_nth_;
    for (uint32_t index = first; index < launch_.blocks && !state_.stopped; index += every_nth_) {
      ++report_.blocks_run;
      RunningCore core = start(index);
      resume(core);
      retire_or_keep(std::move(core));
    }
    while (!waiting_.empty() && !state_.stopped) sync_all();
    release();  // if the launch was stopped, the waiting cores unwind
    report_.violations = state_.verdicts.take();
    report_.estimates = estimate(times_, bytes_moved(), state_.type, state_.hardware);
    return std::move(report_);
  }

 private:
  RunningCore start(uint32_t index) {
    RunningCore running;
    if (free_ub_.empty()) {
      running.ub = std::make_unique<Ub>();
    } else {
      running.ub = std::move(free_ub_.back());
      free_ub_.pop_back();
    }
    running.ub->clear();
    running.core = std::make_unique<Core>(std::make_unique<Core::State>(state_, index, *running.ub));
    running.fiber = std::make_unique<Fiber>(stacks_, [this, core = running.core.get()] { run_body(*core); });
    return running;
  }

  void run_body(Core& core) {
    try {
      launch_.body();
      if (!state_.stopped) core.state().at_end(core.atomic);
    } catch (const KernelStopped&) {
    } catch (const std::exception& error) {
      fail(core, error.what());
    } catch (...) {
      fail(core, "something that is no std::exception");
    }
  }

  void fail(Core& core, const std::string& what) {
    state_.stopped = true;
    report_.exception =
        "after " + describe(core.state().current) + ", core " + std::to_string(core.index()) + " threw: " + what;
  }

  void resume(RunningCore& running) {
    make_current(running.core.get());
    running.fiber->resume();
    make_current(nullptr);
  }

  void retire_or_keep(RunningCore running) {
    if (!running.fiber->done()) {
      waiting_.push_back(std::move(running));
      return;
    }
    Core::State& state = running.core->state();
    report_.cores[state.index] = std::move(state.counters);
    times_[state.index] = {state.timelines.all_over(), state.timelines.busy()};
    free_ub_.push_back(std::move(running.ub));
  }

  // Scaled up to all blocks, as if the skipped ones were like those that ran.
  double bytes_moved() const {
    const Counters total = report_.total();
    return static_cast<double>(total.gm_bytes_read + total.gm_bytes_written) * launch_.blocks / report_.blocks_run;
  }

  // Every core that is not done waits in SyncAll.
  void sync_all() {
    if (waiting_.size() < launch_.blocks) {
      waiting_.front().core->violate(
          Rule::sync_all_reached, "SyncAll reached by all " + std::to_string(launch_.blocks) + " cores",
          std::to_string(launch_.blocks - waiting_.size()) + " ended without it: the others wait for ever");
      state_.stopped = true;
      return;
    }
    Moments last{};
    for (RunningCore& running : waiting_) {
      const Moments over = running.core->state().timelines.all_over();
      for (size_t i = 0; i < kTimelines; ++i) last[i] = std::max(last[i], over[i]);
    }
    for (RunningCore& running : waiting_) running.core->state().timelines.wait_all(last);
    state_.races.sync_all();
    state_.caches.sync_all();
    release();
  }

  void release() {
    for (RunningCore& running : std::exchange(waiting_, {})) {
      resume(running);
      retire_or_keep(std::move(running));
    }
  }

  const KernelLaunch& launch_;
  const uint32_t every_nth_;
  LaunchState state_;
  Report report_;
  std::vector<CoreTimes> times_;
  Stacks stacks_;
  std::vector<std::unique_ptr<Ub>> free_ub_;
  std::vector<RunningCore> waiting_;
};

}  // namespace

Report run_kernel(const KernelLaunch& launch, const Hardware& hardware, const FindRegion& find_region,
                  Options options) {
  return Run(launch, hardware, find_region, options).run();
}

}  // namespace virtual_cann
