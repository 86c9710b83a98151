// SPDX-License-Identifier: Apache-2.0
// A stream: a thread that runs tasks one after the other. A task that throws fails the stream: until it is destroyed,
// every synchronise reports that error, and later tasks are dropped. While the stream is captured, its tasks go to the
// capture, and it can be neither queried nor synchronised.
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

#include "core_limits.h"
#include "devices.h"

namespace virtual_cann {

constexpr int32_t kForever = -1;  // milliseconds

class Capture;

struct Task {
  std::string name;
  std::function<void()> run;
  bool event;
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  explicit Stream(Device& device);
  Stream(const Stream&) = delete;

  Device& device;
  const uint32_t id;
  CoreLimits limits;

  // A copy, a fill, an operator or a kernel. Faults and failures apply to it.
  void enqueue(std::string name, std::function<void()> run);
  // The record of an event, or a wait for one. A failed stream runs it too: other streams and threads may wait for it.
  void enqueue_event(std::function<void()> run);

  // Throws the error of the stream or the device.
  void synchronize(int32_t milliseconds);
  bool idle();  // throws like synchronize()

  // Throws if the stream is captured already.
  void enter(std::shared_ptr<Capture> capture);
  void leave();
  std::shared_ptr<Capture> capture();  // null for none
  // Throws if the stream is captured, and invalidates the capture.
  void check_not_captured(const char* call);

  // Ends the thread, after all queued tasks have run or, if abandoned, without waiting for it: it drops them.
  void finish(bool abandon);
  void recover();

 private:
  void push(Task task);
  void work();
  std::optional<Error> run(const Task& task);
  void raise(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable queued_, done_;
  std::deque<Task> tasks_;
  uint64_t queued_count_ = 0, done_count_ = 0;
  uint32_t tasks_made_ = 0;
  bool ending_ = false, abandoned_ = false;
  std::shared_ptr<Capture> capture_;
  std::optional<Error> failure_;
  std::thread thread_;  // starts with the first task
};

// The last task that this thread put on a stream, or that was captured from it; not a refused one.
struct LastTask {
  uint32_t task = UINT32_MAX, stream = UINT16_MAX;
};
const LastTask& last_task_of_thread();

// Throws unless the handle is of aclrtCreateStream and not destroyed.
std::shared_ptr<Stream> live_stream(aclrtStream handle);

// Waits for all streams of the device; throws the first error.
void synchronize_device(Device& device, int32_t milliseconds);

}  // namespace virtual_cann
