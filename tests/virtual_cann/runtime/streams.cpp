// SPDX-License-Identifier: Apache-2.0
#include "streams.h"

#include <atomic>
#include <chrono>

#include "capture.h"
#include "faults.h"

namespace virtual_cann {
namespace {

std::atomic<uint32_t> streams_made{0};
thread_local LastTask last_task;

}  // namespace

const LastTask& last_task_of_thread() { return last_task; }

Stream::Stream(Device& device) : device(device), id(streams_made++) {}

void Stream::enqueue(std::string name, std::function<void()> run) { push({std::move(name), std::move(run), false}); }

void Stream::enqueue_event(std::function<void()> run) { push({"event", std::move(run), true}); }

void Stream::push(Task task) {
  device.check();
  std::lock_guard lock(mutex_);
  if (ending_) throw Error(ACL_ERROR_RT_PARAM_INVALID, task.name + ": the stream is being destroyed");
  if (capture_) {
    capture_->add(*this, std::move(task));
  } else {
    if (!thread_.joinable()) thread_ = std::thread([self = shared_from_this()] { self->work(); });
    tasks_.push_back(std::move(task));
    ++queued_count_;
    queued_.notify_one();
  }
  last_task = {tasks_made_++, id};
}

void Stream::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    queued_.wait(lock, [&] { return ending_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    bool dropped = !task.event && (failure_ || abandoned_);
    lock.unlock();
    std::optional<Error> error;
    if (!dropped) error = run(task);
    task.run = nullptr;  // releases what it holds before anyone sees it done
    lock.lock();
    if (error) failure_ = error;
    ++done_count_;
    done_.notify_all();
  }
}

std::optional<Error> Stream::run(const Task& task) {
  if (!task.event) {
    std::this_thread::sleep_for(task_delay());
    if (task_loses_device(device.id)) device.lose();
    if (device.lost()) return std::nullopt;
  }
  try {
    task.run();
    return std::nullopt;
  } catch (const Error& error) {
    return Error(error.code, task.name + " on device " + std::to_string(device.id) + ": " + error.what());
  } catch (const std::exception& error) {
    return Error(ACL_ERROR_INTERNAL_ERROR, task.name + ": " + error.what());
  }
}

void Stream::enter(std::shared_ptr<Capture> capture) {
  check_not_captured("another capture");
  std::lock_guard lock(mutex_);
  capture_ = std::move(capture);
}

void Stream::leave() {
  std::lock_guard lock(mutex_);
  capture_.reset();
}

std::shared_ptr<Capture> Stream::capture() {
  std::lock_guard lock(mutex_);
  return capture_;
}

void Stream::check_not_captured(const char* call) {
  if (const std::shared_ptr<Capture> now = capture()) now->refuse(ACL_ERROR_RT_STREAM_CAPTURED, call);
}

void Stream::synchronize(int32_t milliseconds) {
  check_not_captured("synchronise");
  std::unique_lock lock(mutex_);
  auto done = [&, all = queued_count_] { return done_count_ >= all; };
  if (milliseconds == kForever) {
    done_.wait(lock, done);
  } else if (!done_.wait_for(lock, std::chrono::milliseconds(milliseconds), done)) {
    throw Error(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, std::to_string(queued_count_ - done_count_) +
                                                      " tasks are not done after " + std::to_string(milliseconds) +
                                                      " ms");
  }
  raise(lock);
}

bool Stream::idle() {
  check_not_captured("query");
  std::unique_lock lock(mutex_);
  bool all_done = done_count_ == queued_count_;
  raise(lock);
  return all_done;
}

void Stream::raise(std::unique_lock<std::mutex>& lock) {
  std::optional<Error> failure = failure_;
  lock.unlock();
  device.check();
  if (failure) throw *failure;
}

void Stream::finish(bool abandon) {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
    abandoned_ = abandon;
    queued_.notify_one();
  }
  if (!thread_.joinable()) return;
  if (abandon) {
    thread_.detach();  // it may be waiting for an event that nobody will record
  } else {
    thread_.join();
  }
}

void Stream::recover() {
  std::lock_guard lock(mutex_);
  failure_.reset();
}

}  // namespace virtual_cann
