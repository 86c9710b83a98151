// SPDX-License-Identifier: Apache-2.0
#include "streams.h"

#include <chrono>

#include "faults.h"

namespace virtual_cann {

void Stream::enqueue(std::string name, std::function<void()> run) { push({std::move(name), std::move(run), false}); }

void Stream::enqueue_event(std::function<void()> run) { push({"event", std::move(run), true}); }

void Stream::push(Task task) {
  device.check();
  std::lock_guard lock(mutex_);
  if (ending_) throw Error(ACL_ERROR_RT_PARAM_INVALID, task.name + ": the stream is being destroyed");
  if (!thread_.joinable()) thread_ = std::thread([self = shared_from_this()] { self->work(); });
  tasks_.push_back(std::move(task));
  ++queued_count_;
  queued_.notify_one();
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
    task.run = nullptr;  // gives back what it held before anyone sees it done
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

void Stream::synchronize(int32_t milliseconds) {
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
