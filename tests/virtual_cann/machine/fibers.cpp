// SPDX-License-Identifier: Apache-2.0
#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <utility>

namespace virtual_cann {

namespace {

thread_local Fiber* running = nullptr;

// As large as a main thread's stack; only touched pages take memory.
constexpr size_t kStackBytes = 8 << 20;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

Stacks::~Stacks() {
  for (void* stack : all_) munmap(static_cast<char*>(stack) - page(), page() + kStackBytes);
}

void* Stacks::take() {
  if (free_.empty()) {
    void* memory = mmap(nullptr, page() + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page(), PROT_NONE);
    all_.push_back(static_cast<char*>(memory) + page());
    return all_.back();
  }
  void* stack = free_.back();
  free_.pop_back();
  return stack;
}

size_t Stacks::bytes() { return kStackBytes; }

Fiber::Fiber(Stacks& stacks, std::function<void()> body)
    : stacks_(stacks), stack_(stacks.take()), body_(std::move(body)) {
  getcontext(&here_);
  here_.uc_stack.ss_sp = stack_;
  here_.uc_stack.ss_size = Stacks::bytes();
  here_.uc_link = &caller_;
  makecontext(&here_, &Fiber::run, 0);
}

Fiber::~Fiber() { stacks_.give(stack_); }

void Fiber::run() {
  Fiber* self = running;
  self->body_();
  self->done_ = true;
}

void Fiber::resume() {
  Fiber* outer = std::exchange(running, this);
  swapcontext(&caller_, &here_);
  running = outer;
}

void Fiber::yield() {
  Fiber* self = running;
  swapcontext(&self->here_, &self->caller_);
}

}  // namespace virtual_cann
