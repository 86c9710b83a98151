// SPDX-License-Identifier: Apache-2.0
// TPipe hands out UB and event ids; a TBuf is a piece of UB without synchronisation.
#pragma once

#include <algorithm>
#include <deque>
#include <exception>
#include <optional>
#include <vector>

#include "events.h"
#include "tensor.h"

namespace virtual_cann::api {

// One buffer of a queue. Its event ids belong to it, as in the real headers.
struct Buffer {
  enum class State { free, held, enqueued };

  uint32_t address;
  uint32_t bytes;
  PipePair filled_pair;   // set by EnQue, awaited by DeQue
  PipePair emptied_pair;  // set by FreeTensor, awaited by the next AllocTensor
  State state = State::free;
  bool counted = true;  // against the limit of its position
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
  // Not const, as in the real header.
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
    const uint64_t bytes = size * sizeof(T);
    if (offset % kBlockBytes) {
      Core& core = Core::current();
      core.issue(Pipe::S, api, place);
      core.violate(Rule::ub_alignment, "an offset of whole blocks of 32 bytes", text(offset));
    }
    if (offset + bytes > bytes_) {
      Core& core = Core::current();
      core.issue(Pipe::S, api, place);
      core.stop(Rule::ub_bounds, "at most the " + text(bytes_) + " bytes of the TBuf", text(offset + bytes));
    }
    return {address_ + static_cast<uint32_t>(offset), static_cast<uint32_t>(bytes), nullptr};
  }

  uint32_t address_ = 0;
  uint32_t bytes_ = 0;
};

class TPipe {
 public:
  explicit TPipe(Place place = Place::here()) {
    reset_registers();
    Init(place);
  }
  TPipe(const TPipe&) = delete;
  TPipe& operator=(const TPipe&) = delete;
  ~TPipe() noexcept(false);

  void Init(Place place = Place::here());
  void Reset() {
    drain();
    reset_registers();
    reset();
  }
  void Destroy();

  template <class Queue>
  bool InitBuffer(Queue& que, Field<uint8_t> num, uint32_t len, Place place = Place::here()) {
    using namespace virtual_cann::api;
    Core& core = Core::current();
    core.issue(Pipe::S, "InitBuffer", place);
    require_some(core, num.meant(), len);
    que.buffers_.clear();
    for (int64_t i = 0; i < num.meant(); ++i) {
      buffers_.push_back({core.allocate_ub(len), round_up(len), Queue::kFilled, Queue::kEmptied});
      que.buffers_.push_back(&buffers_.back());
    }
    require_position(core, Queue::kFilled);
    return true;
  }
  template <TPosition pos>
  bool InitBuffer(TBuf<pos>& buf, uint32_t len, Place place = Place::here()) {
    using namespace virtual_cann::api;
    Core& core = Core::current();
    core.issue(Pipe::S, "InitBuffer", place);
    require_some(core, 1, len);
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
  // The lowest free id, which is not taken.
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
  // The real headers check this in their debug build only.
  static void require_some(virtual_cann::Core& core, int64_t buffers, uint32_t bytes) {
    using namespace virtual_cann::api;
    if (buffers < 1 || bytes < 1)
      core.stop(Rule::ub_buffers, "a buffer or more, of 1 byte or more",
                text(buffers) + " of " + text(bytes) + " bytes");
  }
  // A buffer holds an event of its position's pair of pipes for as long as it is free or enqueued (page TQue, "limits
  // of TQue's buffers").
  void require_position(virtual_cann::Core& core, virtual_cann::api::PipePair filled) const;

  // Atomic mode and mask, as the constructor and Reset set them (InitSocState).
  static void reset_registers() {
    auto& core = virtual_cann::Core::current();
    core.atomic = virtual_cann::AtomicMode::none;
    core.mask = {~uint64_t{0}, ~uint64_t{0}, false};
  }
  void reset() {
    virtual_cann::Core::current().reset_pipe();
    buffers_.clear();
    destroyed_ = false;
  }
  void drain();

  std::deque<virtual_cann::api::Buffer> buffers_;
  bool destroyed_ = false;
  int exceptions_ = std::uncaught_exceptions();
};

}  // namespace AscendC

namespace virtual_cann::api {

// The current core's TPipe, or null. Cores may share a thread, in turns.
inline AscendC::TPipe*& current_pipe() {
  thread_local std::vector<AscendC::TPipe*> pipes;
  const uint32_t core = Core::current().index();
  if (core >= pipes.size()) pipes.resize(core + 1);
  return pipes[core];
}

}  // namespace virtual_cann::api

namespace AscendC {

inline TPipe* GetTPipePtr(Place place = Place::here()) {
  using namespace virtual_cann::api;
  if (TPipe* const pipe = current_pipe()) return pipe;
  Core& core = Core::current();
  core.issue(Pipe::S, "GetTPipePtr", place);
  core.stop(Rule::one_pipe, "a TPipe", "none");
}

inline void TPipe::Init(Place place) {
  using namespace virtual_cann::api;
  if (current_pipe() != nullptr) {
    Core& core = Core::current();
    core.issue(Pipe::S, "TPipe", place);
    core.violate(Rule::one_pipe, "Destroy of the TPipe that there is", "another TPipe");
  }
  reset();
  current_pipe() = this;
}

inline void TPipe::Destroy() {
  if (destroyed_) return;
  drain();
  virtual_cann::Core::current().barrier_all();
  destroyed_ = true;
  virtual_cann::api::current_pipe() = nullptr;
}

inline TPipe::~TPipe() noexcept(false) {
  if (std::uncaught_exceptions() == exceptions_)
    Destroy();
  else
    virtual_cann::api::current_pipe() = nullptr;
}

inline void TPipe::require_position(virtual_cann::Core& core, virtual_cann::api::PipePair filled) const {
  using namespace virtual_cann::api;
  const auto count = std::count_if(buffers_.begin(), buffers_.end(), [&](const Buffer& buffer) {
    return buffer.counted && buffer.filled_pair.from == filled.from && buffer.filled_pair.to == filled.to;
  });
  if (count > kEventIds)
    core.violate(Rule::queue_buffers, "at most " + text(kEventIds) + " buffers of queues in one position", text(count));
}

// A flag that a queue left set would satisfy the next kernel's wait.
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
