// SPDX-License-Identifier: Apache-2.0
// The tasks put on streams between aclmdlRICaptureBegin and aclmdlRICaptureEnd, to be run as often as asked.
//
// Tasks keep the order in which they were made, whatever their stream. A wait for an event comes after the event's
// record, so running all tasks in this order on one stream preserves every order between them.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "streams.h"

namespace virtual_cann {

class Capture : public std::enable_shared_from_this<Capture> {
 public:
  // For each stream, how many of its tasks are over at some point of the capture.
  using Progress = std::map<const Stream*, uint64_t>;

  Capture(Stream& origin, aclmdlRICaptureMode mode) : origin(origin), mode(mode) {}
  Stream& origin;
  const aclmdlRICaptureMode mode;
  const std::thread::id began_in = std::this_thread::get_id();

  bool active() const;
  bool valid() const;

  // Throws if the capture is invalid.
  void add(const Stream& stream, Task task);
  Progress progress(const Stream& stream) const;
  // Makes the stream, which joins the capture, continue after `progress`.
  void wait(Stream& stream, const Progress& progress);

  // Throws `code`, and makes the capture invalid: then it can only be ended.
  [[noreturn]] void refuse(aclError code, const std::string& what);
  void invalidate();

  // All streams leave the capture. Throws if it is invalid, or holds work that the first stream does not wait for.
  void end();

  // Puts the captured tasks on the stream.
  void run(Stream& stream) const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Stream>> joined_;
  std::vector<Task> tasks_;
  std::map<const Stream*, Progress> known_;  // a stream's own count is the number of tasks that it has made
  bool active_ = true, valid_ = true;
};

// Throws where a capture on the current device forbids calls that wait, such as aclrtMemcpy; invalidates that capture.
void require_no_capture_forbids(const char* call);

}  // namespace virtual_cann
