// SPDX-License-Identifier: Apache-2.0
// TPipe deals out UB and event ids; TBuf is a piece of UB that nothing synchronises.
#pragma once

#include <deque>
#include <exception>
#include <optional>
#include <vector>

#include "events.h"
#include "tensor.h"

namespace virtual_cann::api {

// One buffer of a queue. Its flags travel with it, as they do in the real headers.
struct Buffer {
  enum class State { free, held, enqueued };

  uint32_t address;
  uint32_t bytes;
  PipePair filled_pair;   // set by EnQue, awaited by DeQue
  PipePair emptied_pair;  // set by FreeTensor, awaited by the next AllocTensor
  State state = State::free;
  std::optional<uint32_t> filled{};
  std::optional<uint32_t> emptied{};
  Place allocated{};

  void set(Core& core, PipePair pair, std::optional<uint32_t>& event) {
    event = core.take_event(pair.from, pair.to);
    core.set_flag(pair.from, pair.to, *event);
  }
  void wait(Core& core, PipePair pair, std::optional<uint32_t>& event) {
    if (!event) return;
    core.wait_flag(pair.from, pair.to, *event);
    core.give_event(pair.from, pair.to, *event);
    event.reset();
  }
};

}  // namespace virtual_cann::api

namespace AscendC {

template <TPosition pos = TPosition::LCM>
class TBuf {
 public:
  // Not const, as in the real headers.
  template <typename T>
  LocalTensor<T> Get() {
    return {address_, bytes_, nullptr};
  }
  template <typename T>
  LocalTensor<T> Get(uint32_t len, Place place = Place::here()) {
    return part<T>("TBuf::Get", len, 0, place);
  }
  template <typename T>
  LocalTensor<T> GetWithOffset(uint32_t size, uint32_t bufOffset, Place place = Place::here()) {
    return part<T>("TBuf::GetWithOffset", size, bufOffset, place);
  }

 private:
  friend class TPipe;

  template <typename T>
  LocalTensor<T> part(const char* api, uint64_t size, uint64_t offset, Place place) const {
    using namespace virtual_cann::api;
    if (offset + size * sizeof(T) > bytes_) {
      Core& core = Core::current();
      core.issue(Pipe::S, api, place);
      core.stop(Rule::ub_bounds, "at most the " + text(bytes_) + " bytes of the TBuf", text(offset + size * sizeof(T)));
    }
    return {address_ + static_cast<uint32_t>(offset), static_cast<uint32_t>(size * sizeof(T)), nullptr};
  }

  uint32_t address_ = 0;
  uint32_t bytes_ = 0;
};

class TPipe {
 public:
  TPipe() { Init(); }
  TPipe(const TPipe&) = delete;
  TPipe& operator=(const TPipe&) = delete;
  ~TPipe() noexcept(false) {
    if (std::uncaught_exceptions() == exceptions_) Destroy();
  }

  void Init();
  void Reset() {
    drain();
    Init();
  }
  void Destroy() {
    if (destroyed_) return;
    drain();
    virtual_cann::Core::current().barrier_all();
    destroyed_ = true;
  }

  template <class Queue>
  bool InitBuffer(Queue& que, Field<uint8_t> num, uint32_t len, Place place = Place::here()) {
    using namespace virtual_cann::api;
    Core& core = Core::current();
    core.issue(Pipe::S, "InitBuffer", place);
    que.buffers_.clear();
    for (int64_t i = 0; i < num.meant(); ++i) {
      buffers_.push_back({core.allocate_ub(len), round_up(len), Queue::kFilled, Queue::kEmptied});
      que.buffers_.push_back(&buffers_.back());
    }
    return true;
  }
  template <TPosition pos>
  bool InitBuffer(TBuf<pos>& buf, uint32_t len, Place place = Place::here()) {
    using namespace virtual_cann::api;
    Core& core = Core::current();
    core.issue(Pipe::S, "InitBuffer", place);
    buf.address_ = core.allocate_ub(len);
    buf.bytes_ = round_up(len);
    return true;
  }

  template <HardEvent event>
  TEventID AllocEventID(Place place = Place::here()) {
    return take("AllocEventID", event, place);
  }
  template <HardEvent event>
  void ReleaseEventID(TEventID id, Place place = Place::here()) {
    give("ReleaseEventID", event, id, place);
  }
  // A free id, which stays free.
  TEventID FetchEventID(HardEvent event, Place place = Place::here()) {
    const TEventID id = take("FetchEventID", event, place);
    give("FetchEventID", event, id, place);
    return id;
  }
  template <HardEvent event>
  TEventID FetchEventID(Place place = Place::here()) {
    return FetchEventID(event, place);
  }

 private:
  static uint32_t round_up(uint32_t bytes) {
    constexpr uint32_t block = virtual_cann::kBlockBytes;
    return (bytes + block - 1) / block * block;
  }
  static TEventID take(const char* api, HardEvent event, Place place) {
    using namespace virtual_cann::api;
    Core& core = Core::current();
    core.issue(Pipe::S, api, place);
    return static_cast<TEventID>(core.take_event(pipes_of(event).from, pipes_of(event).to));
  }
  static void give(const char* api, HardEvent event, TEventID id, Place place) {
    using namespace virtual_cann::api;
    Core& core = Core::current();
    core.issue(Pipe::S, api, place);
    core.give_event(pipes_of(event).from, pipes_of(event).to, static_cast<uint32_t>(id));
  }
  void drain();

  std::deque<virtual_cann::api::Buffer> buffers_;
  bool destroyed_ = false;
  int exceptions_ = std::uncaught_exceptions();
};

}  // namespace AscendC

namespace virtual_cann::api {

// The TPipe that the core made last. Cores may take turns in one thread.
inline AscendC::TPipe*& current_pipe() {
  thread_local std::vector<AscendC::TPipe*> pipes;
  const uint32_t core = Core::current().index();
  if (core >= pipes.size()) pipes.resize(core + 1);
  return pipes[core];
}

}  // namespace virtual_cann::api

namespace AscendC {

inline TPipe* GetTPipePtr() { return virtual_cann::api::current_pipe(); }

inline void TPipe::Init() {
  virtual_cann::Core::current().reset_ub();
  buffers_.clear();
  destroyed_ = false;
  virtual_cann::api::current_pipe() = this;
}

// The flags that queues still have set would let the next kernel through.
inline void TPipe::drain() {
  using namespace virtual_cann::api;
  Core& core = Core::current();
  for (Buffer& buffer : buffers_) {
    if (buffer.state != Buffer::State::free) {
      core.issue(Pipe::S, "AllocTensor", buffer.allocated);
      core.violate(Rule::queue_leftover, "FreeTensor before the pipe's end",
                   buffer.state == Buffer::State::enqueued ? "a tensor that is enqueued" : "a tensor that is held");
    }
    buffer.wait(core, buffer.filled_pair, buffer.filled);
    buffer.wait(core, buffer.emptied_pair, buffer.emptied);
  }
}

}  // namespace AscendC
