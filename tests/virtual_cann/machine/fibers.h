// SPDX-License-Identifier: Apache-2.0
// Functions that can be suspended and resumed, all on one thread: for cores that wait in SyncAll.
#pragma once

#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

namespace virtual_cann {

// Reused stacks for fibers. Below each lies a guard page.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  ~Stacks();

  void* take();  // the lowest usable byte
  void give(void* stack) { free_.push_back(stack); }
  static size_t bytes();

 private:
  std::vector<void*> all_;
  std::vector<void*> free_;
};

class Fiber {
 public:
  // The body must not throw.
  Fiber(Stacks& stacks, std::function<void()> body);
  Fiber(const Fiber&) = delete;
  ~Fiber();  // only of a fiber that is done or was never resumed

  void resume();        // runs it to its end or to its next yield()
  static void yield();  // returns to the resume() of the running fiber
  bool done() const { return done_; }

 private:
  static void run();

  Stacks& stacks_;
  void* stack_;
  std::function<void()> body_;
  ucontext_t here_;
  ucontext_t caller_;
  bool done_ = false;
};

}  // namespace virtual_cann
