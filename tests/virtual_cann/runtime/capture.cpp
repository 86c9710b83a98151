// SPDX-License-Identifier: Apache-2.0
#include "capture.h"

#include <algorithm>

namespace virtual_cann {

bool Capture::active() const {
  std::lock_guard lock(mutex_);
  return active_;
}

bool Capture::valid() const {
  std::lock_guard lock(mutex_);
  return valid_;
}

void Capture::add(const Stream& stream, Task task) {
  std::lock_guard lock(mutex_);
  if (!valid_) {
    throw Error(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, task.name + ": the capture of its stream failed before");
  }
  ++known_[&stream][&stream];
  tasks_.push_back(std::move(task));
}

Capture::Progress Capture::progress(const Stream& stream) const {
  std::lock_guard lock(mutex_);
  auto found = known_.find(&stream);
  return found == known_.end() ? Progress{} : found->second;
}

void Capture::wait(Stream& stream, const Progress& progress) {
  const std::shared_ptr<Capture> own = stream.capture();
  if (own && own.get() != this) {
    own->invalidate();
    refuse(ACL_ERROR_STREAM_CAPTURE_CONFLICT, "a stream of one capture waits for an event of another");
  }
  if (!own) {
    stream.enter(shared_from_this());
    std::lock_guard lock(mutex_);
    joined_.push_back(stream.shared_from_this());
  }
  std::lock_guard lock(mutex_);
  Progress& known = known_[&stream];
  for (const auto& [other, count] : progress) known[other] = std::max(known[other], count);
  ++known[&stream];
}

void Capture::refuse(aclError code, const std::string& what) {
  invalidate();
  throw Error(code, what + ": not while a stream is captured, and the capture has failed by it");
}

void Capture::invalidate() {
  std::lock_guard lock(mutex_);
  valid_ = false;
}

void Capture::end() {
  std::vector<std::shared_ptr<Stream>> joined;
  bool valid, all_waited_for = true;
  {
    std::lock_guard lock(mutex_);
    active_ = false;
    valid = valid_;
    joined.swap(joined_);
    const Progress& known = known_[&origin];
    for (const std::shared_ptr<Stream>& stream : joined) {
      auto seen = known.find(stream.get());
      all_waited_for &= seen != known.end() && seen->second == known_[stream.get()][stream.get()];
    }
  }
  origin.leave();
  for (const std::shared_ptr<Stream>& stream : joined) stream->leave();
  if (!valid) throw Error(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "a call before this one made the capture fail");
  if (!all_waited_for) {
    throw Error(ACL_ERROR_RT_STREAM_UNJOINED,
                "a stream that joined the capture has work that the first stream does not wait for; record an event "
                "after that work, and have the first stream wait for it");
  }
}

void Capture::run(Stream& stream) const {
  std::lock_guard lock(mutex_);
  for (const Task& task : tasks_) stream.enqueue(task.name + " of a capture", task.run);
}

}  // namespace virtual_cann
