// SPDX-License-Identifier: Apache-2.0
// What streams were given between aclmdlRICaptureBegin and aclmdlRICaptureEnd, to be run as often as that is asked.
//
// Tasks keep the order in which they were made, whatever stream they were made on. Who waits for an event comes after
// its record, so that run one after the other in this order, on one stream, they keep every order there was.
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
  // Of each stream: how many of its tasks are over where this is asked.
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
  // From here on the stream, which joins the capture, comes after this.
  void wait(Stream& stream, const Progress& progress);

  // Throws `code`, and makes the capture invalid: it can only be ended now.
  [[noreturn]] void refuse(aclError code, const std::string& what);
  void invalidate();

  // All its streams leave it. Throws if it is invalid, or holds work that the first stream does not wait for.
  void end();

  // Puts its tasks on the stream.
  void run(Stream& stream) const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Stream>> joined_;
  std::vector<Task> tasks_;
  std::map<const Stream*, Progress> known_;  // a stream's own count is how many tasks it has made
  bool active_ = true, valid_ = true;
};

// Throws where a capture of the current device's forbids calls that wait, such as aclrtMemcpy; the capture is invalid.
void require_no_capture_forbids(const char* call);

}  // namespace virtual_cann
