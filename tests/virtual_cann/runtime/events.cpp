// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>

#include "capture.h"
#include "streams.h"

namespace virtual_cann {
namespace {

using Clock = std::chrono::steady_clock;

// A record is complete when its stream has reached it. Records are numbered: a wait is for the last record made before
// the wait was, whatever is recorded later. A stream can wait for an event before its first record: torch_npu has a
// queue for each device, and the wait may arrive through its own queue before the record through another.
class Event {
 public:
  explicit Event(uint32_t flags) : external_((flags & ACL_EVENT_EXTERNAL) != 0) {}

  void record(Stream& stream, const std::shared_ptr<Event>& self) {
    if (const std::shared_ptr<Capture> capture = stream.capture()) return record_in(*capture, stream);
    uint64_t number;
    {
      std::lock_guard lock(mutex_);
      captured_.reset();
      number = ++made_;
    }
    try {
      stream.enqueue_event([self, number] { self->complete(number); });
    } catch (const Error&) {
      complete(number);  // so that nobody waits for the refused record
      throw;
    }
  }

  void make_wait(Stream& stream, const std::shared_ptr<Event>& self) {
    if (const std::optional<Captured> captured = active_capture()) {
      return captured->capture->wait(stream, captured->progress);
    }
    if (const std::shared_ptr<Capture> capture = stream.capture()) {
      capture->refuse(ACL_ERROR_RT_CAPTURE_DEPENDENCY, "a wait for an event that was recorded outside of the capture");
    }
    uint64_t number = std::max<uint64_t>(made(), 1);
    stream.enqueue_event([self, number] { self->wait(number); });
  }

  void synchronize() {
    check_not_captured("synchronise of an event");
    uint64_t number = made();
    if (number == 0)
      throw Error(ACL_ERROR_RT_PARAM_INVALID, "the event was never recorded: the wait would have no end");
    wait(number);
  }

  // Nobody can record a destroyed event, so streams that wait for its first record continue.
  void destroy() {
    std::lock_guard lock(mutex_);
    if (made_ == 0) completed_ = made_ = 1;
    completed_one_.notify_all();
  }

  bool complete() {
    check_not_captured("query of an event");
    std::lock_guard lock(mutex_);
    return completed_ == made_;
  }

  Clock::time_point time() {
    check_not_captured("time of an event");
    std::lock_guard lock(mutex_);
    if (made_ == 0) throw Error(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "the event was never recorded");
    if (completed_ != made_) throw Error(ACL_ERROR_RT_EVENT_NOT_COMPLETE, "the event's record is not complete yet");
    return time_;
  }

 private:
  struct Captured {
    std::shared_ptr<Capture> capture;
    Capture::Progress progress;
  };

  void record_in(Capture& capture, const Stream& stream) {
    if (external_) {
      throw Error(ACL_ERROR_API_NOT_SUPPORT, "the virtual CANN captures no event of the kind ACL_EVENT_EXTERNAL");
    }
    std::lock_guard lock(mutex_);
    captured_ = {capture.shared_from_this(), capture.progress(stream)};
  }

  // With a record in it; none once the capture has ended.
  std::optional<Captured> active_capture() {
    std::lock_guard lock(mutex_);
    if (captured_ && !captured_->capture->active()) captured_.reset();
    return captured_;
  }

  void check_not_captured(const char* call) {
    if (const std::optional<Captured> now = active_capture()) now->capture->refuse(ACL_ERROR_RT_EVENT_CAPTURED, call);
  }

  uint64_t made() {
    std::lock_guard lock(mutex_);
    return made_;
  }

  void complete(uint64_t number) {
    std::lock_guard lock(mutex_);
    // Two streams may complete their records in reverse order.
    if (number > completed_) {
      completed_ = number;
      time_ = Clock::now();
    }
    completed_one_.notify_all();
  }

  void wait(uint64_t number) {
    std::unique_lock lock(mutex_);
    completed_one_.wait(lock, [&] { return completed_ >= number; });
  }

  std::mutex mutex_;
  std::condition_variable completed_one_;
  const bool external_;
  std::optional<Captured> captured_;
  uint64_t made_ = 0, completed_ = 0;
  Clock::time_point time_;
};

struct Events {
  std::mutex mutex;
  std::map<const void*, std::shared_ptr<Event>> live;
};

Events& events() {
  static auto* all = new Events;
  return *all;
}

std::shared_ptr<Event> live_event(aclrtEvent handle) {
  std::lock_guard lock(events().mutex);
  auto found = events().live.find(handle);
  if (found == events().live.end()) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID,
                hex(handle) + " is not a live event: aclrtCreateEvent did not give it, or it was destroyed");
  }
  return found->second;
}

}  // namespace
}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

// Flags leave out costly features of hardware events (times, host synchronisation); here every event has them all.
aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t flags) {
  return api(__func__, [&] {
    auto created = std::make_shared<Event>(flags);
    std::lock_guard lock(events().mutex);
    events().live[created.get()] = created;
    out(event, "event") = created.get();
  });
}

aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t flags) {
  return aclrtCreateEventWithFlag(event, flags);
}
aclError aclrtCreateEvent(aclrtEvent* event) { return aclrtCreateEventWithFlag(event, 0); }

aclError aclrtDestroyEvent(aclrtEvent event) {
  return api(__func__, [&] {
    live_event(event)->destroy();
    std::lock_guard lock(events().mutex);
    events().live.erase(event);
  });
}

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream) {
  return api(__func__, [&] {
    std::shared_ptr<Event> event = live_event(handle);
    event->record(*live_stream(stream), event);
  });
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent handle) {
  return api(__func__, [&] {
    std::shared_ptr<Event> event = live_event(handle);
    event->make_wait(*live_stream(stream), event);
  });
}

// For events that are reset before reuse; a numbered record needs no reset.
aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream) {
  return api(__func__, [&] {
    live_event(event);
    live_stream(stream);
  });
}

aclError aclrtSynchronizeEvent(aclrtEvent event) {
  return api(__func__, [&] { live_event(event)->synchronize(); });
}

aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus* status) {
  return api(__func__, [&] {
    out(status, "status") =
        live_event(event)->complete() ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  });
}

aclError aclrtEventElapsedTime(float* milliseconds, aclrtEvent start, aclrtEvent end) {
  return api(__func__, [&] {
    std::chrono::duration<float, std::milli> elapsed = live_event(end)->time() - live_event(start)->time();
    out(milliseconds, "ms") = elapsed.count();
  });
}

aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t* microseconds) {
  return api(__func__, [&] {
    auto since = live_event(event)->time().time_since_epoch();
    out(microseconds, "timestamp") =
        static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(since).count());
  });
}

}  // extern "C"
