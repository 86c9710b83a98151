// SPDX-License-Identifier: Apache-2.0
// Queues pass tensors between pipes: a tensor is free, held (after AllocTensor, DeQue) or enqueued (after EnQue).
#pragma once

#include <algorithm>

#include "pipe.h"

namespace AscendC {

template <TPosition src, TPosition dst, int32_t depth, auto mask = 0>
class TQueBind {
  static_assert(depth > 0, "a queue of depth 0, which is used in place, is not modelled: CANN 8.1 has none");
  static_assert((src == TPosition::GM && dst == TPosition::VECIN) ||
                    (src == TPosition::VECOUT && dst == TPosition::GM) ||
                    (src == TPosition::VECIN && dst == TPosition::VECOUT),
                "VECIN, VECOUT, or VECIN bound to VECOUT");

 public:
  template <typename T>
  LocalTensor<T> AllocTensor(Place place = Place::here()) {
    Core& core = begin("AllocTensor", place);
    // Round-robin, so that two buffers alternate.
    for (size_t i = 0; i < buffers_.size(); ++i) {
      Buffer& buffer = *buffers_[(next_ + i) % buffers_.size()];
      if (buffer.state != Buffer::State::free) continue;
      next_ = (next_ + i + 1) % buffers_.size();
      buffer.wait(core, kEmptied, buffer.emptied);
      buffer.state = Buffer::State::held;
      buffer.allocated = place;
      return tensor<T>(buffer);
    }
    core.stop(virtual_cann::Rule::queue_alloc, "a free buffer",
              "none: all " + virtual_cann::api::text(buffers_.size()) + " are held or enqueued");
  }

  template <typename T>
  bool EnQue(const LocalTensor<T>& tensor, Place place = Place::here()) {
    using virtual_cann::Rule;
    Core& core = begin("EnQue", place);
    Buffer* const buffer = own(tensor);
    if (!buffer || buffer->state != Buffer::State::held) {
      core.violate(Rule::queue_enqueue, "a tensor that this queue's AllocTensor gave",
                   !buffer                                ? "another"
                   : buffer->state == Buffer::State::free ? "one that FreeTensor took back"
                                                          : "one that is enqueued already");
      return false;
    }
    if (enqueued_.size() >= kDepth)
      core.violate(Rule::queue_enqueue, "at most " + virtual_cann::api::text(kDepth) + " enqueued: the queue's depth",
                   virtual_cann::api::text(enqueued_.size() + 1));
    buffer->set(core, kFilled, buffer->filled);
    buffer->state = Buffer::State::enqueued;
    enqueued_.push_back(buffer);
    return true;
  }

  template <typename T>
  LocalTensor<T> DeQue(Place place = Place::here()) {
    Core& core = begin("DeQue", place);
    if (enqueued_.empty()) core.stop(virtual_cann::Rule::queue_dequeue, "an enqueued tensor", "none");
    Buffer& buffer = *enqueued_.front();
    take_out(core, buffer);
    return tensor<T>(buffer);
  }

  template <typename T>
  void FreeTensor(LocalTensor<T>& tensor, Place place = Place::here()) {
    Core& core = begin("FreeTensor", place);
    Buffer* const buffer = own(tensor);
    if (!buffer || buffer->state != Buffer::State::held)
      core.violate(virtual_cann::Rule::queue_free, "a tensor of this queue that is held",
                   !buffer                                ? "another"
                   : buffer->state == Buffer::State::free ? "one that is free already"
                                                          : "one that was not dequeued");
    if (!buffer || buffer->state == Buffer::State::free) return;
    if (buffer->state == Buffer::State::enqueued) take_out(core, *buffer);
    buffer->set(core, kEmptied, buffer->emptied);
    buffer->state = Buffer::State::free;
  }

  bool VacantInQue() const { return enqueued_.size() < kDepth; }
  bool HasTensorInQue() const { return !enqueued_.empty(); }
  int32_t GetTensorCountInQue() const { return static_cast<int32_t>(enqueued_.size()); }
  bool HasIdleBuffer() const {
    return std::any_of(buffers_.begin(), buffers_.end(), [](Buffer* b) { return b->state == Buffer::State::free; });
  }
  void FreeAllEvent(Place place = Place::here()) {
    Core& core = begin("FreeAllEvent", place);
    for (Buffer* buffer : buffers_) {
      buffer->wait(core, kEmptied, buffer->emptied);
      buffer->counted = false;
    }
  }

 private:
  friend class TPipe;
  using Buffer = virtual_cann::api::Buffer;
  using Core = virtual_cann::Core;
  using Pipe = virtual_cann::Pipe;

  static constexpr size_t kDepth = depth;
  static constexpr Pipe kProducer = src == TPosition::VECOUT ? Pipe::V : Pipe::MTE2;
  static constexpr Pipe kConsumer = dst == TPosition::VECIN ? Pipe::V : Pipe::MTE3;
  static constexpr virtual_cann::api::PipePair kFilled{kProducer, kConsumer};
  static constexpr virtual_cann::api::PipePair kEmptied{kConsumer, kProducer};

  static Core& begin(const char* api, Place place) {
    Core& core = Core::current();
    core.issue(Pipe::S, api, place);
    return core;
  }
  template <typename T>
  static LocalTensor<T> tensor(Buffer& buffer) {
    return {buffer.address, buffer.bytes, &buffer};
  }
  template <typename T>
  Buffer* own(const LocalTensor<T>& tensor) const {
    const auto found = std::find(buffers_.begin(), buffers_.end(), tensor.buffer());
    return found == buffers_.end() ? nullptr : *found;
  }
  void take_out(Core& core, Buffer& buffer) {
    enqueued_.erase(std::find(enqueued_.begin(), enqueued_.end(), &buffer));
    buffer.wait(core, kFilled, buffer.filled);
    buffer.state = Buffer::State::held;
  }

  std::vector<Buffer*> buffers_;
  std::vector<Buffer*> enqueued_;
  size_t next_ = 0;
};

// A queue of one position: VECIN is filled from GM, VECOUT is copied out to it.
template <TPosition pos, int32_t depth, auto mask = 0>
class TQue : public TQueBind<pos == TPosition::VECIN ? TPosition::GM : pos,
                             pos == TPosition::VECIN ? TPosition::VECIN : TPosition::GM, depth, mask> {};

}  // namespace AscendC
