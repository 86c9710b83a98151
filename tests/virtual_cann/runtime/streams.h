// SPDX-License-Identifier: Apache-2.0
// A stream: a thread that runs tasks one after the other. A task that throws fails the stream: it reports that error at
// every synchronise, and drops its later tasks, until it is destroyed.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "devices.h"

namespace virtual_cann {

constexpr int32_t kForever = -1;  // milliseconds

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  explicit Stream(Device& device) : device(device) {}
  Stream(const Stream&) = delete;

  Device& device;

  // A copy, a fill, an operator or a kernel. Faults and failures apply to it.
  void enqueue(std::string name, std::function<void()> run);
  // An event's record or wait. A failed stream runs it too, as other streams and threads may wait for it.
  void enqueue_event(std::function<void()> run);

  // Throws the stream's or the device's error.
  void synchronize(int32_t milliseconds);
  bool idle();  // throws them too

  // Ends the thread: waits until what is queued has run or, if abandoned, lets it drop that when it comes to it.
  void finish(bool abandon);
  void recover();

 private:
  struct Task {
    std::string name;
    std::function<void()> run;
    bool event;
  };

  void push(Task task);
  void work();
  std::optional<Error> run(const Task& task);
  void raise(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable queued_, done_;
  std::deque<Task> tasks_;
  uint64_t queued_count_ = 0, done_count_ = 0;
  bool ending_ = false, abandoned_ = false;
  std::optional<Error> failure_;
  std::thread thread_;  // from the first task on
};

// Throws unless aclrtCreateStream gave the handle and nobody destroyed it.
std::shared_ptr<Stream> live_stream(aclrtStream handle);

// Waits for all streams of the device; throws the first error there is.
void synchronize_device(Device& device, int32_t milliseconds);

}  // namespace virtual_cann
