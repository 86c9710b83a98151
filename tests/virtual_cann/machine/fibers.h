// SPDX-License-Identifier: Apache-2.0
// Functions that can be left half done and taken up again, all on one thread: the cores that wait in SyncAll.
#pragma once

#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

namespace virtual_cann {

// Stacks for fibers, used again and again. Below each lies a page that nothing may touch.
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
  // The body lets no exception out.
  Fiber(Stacks& stacks, std::function<void()> body);
  Fiber(const Fiber&) = delete;
  ~Fiber();  // it is done, or was never resumed

  void resume();        // runs it to its end or to its next yield()
  static void yield();  // back to who resumed the fiber that is running
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
