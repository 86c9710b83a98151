// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <vector>

#include "streams.h"

namespace virtual_cann {
namespace {

struct Streams {
  std::mutex mutex;
  std::map<const void*, std::shared_ptr<Stream>> live;
};

// Never destroyed: a process may end while its streams still work.
Streams& streams() {
  static auto* all = new Streams;
  return *all;
}

std::vector<std::shared_ptr<Stream>> all_streams() {
  std::lock_guard lock(streams().mutex);
  std::vector<std::shared_ptr<Stream>> all;
  for (const auto& entry : streams().live) all.push_back(entry.second);
  return all;
}

aclrtStream create() {
  auto stream = std::make_shared<Stream>(current_device());
  std::lock_guard lock(streams().mutex);
  streams().live[stream.get()] = stream;
  return stream.get();
}

void destroy(aclrtStream handle, bool abandon) {
  std::shared_ptr<Stream> stream = live_stream(handle);
  stream->check_not_captured("destroy");
  {
    std::lock_guard lock(streams().mutex);
    if (streams().live.erase(handle) == 0) return;  // another thread was first
  }
  stream->finish(abandon);
}

}  // namespace

std::shared_ptr<Stream> live_stream(aclrtStream handle) {
  if (handle == nullptr) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID,
                "the stream is null: the virtual CANN has no default stream; pass one of aclrtCreateStream");
  }
  std::lock_guard lock(streams().mutex);
  auto found = streams().live.find(handle);
  if (found == streams().live.end()) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID,
                hex(handle) + " is not a live stream: aclrtCreateStream did not give it, or it was destroyed");
  }
  return found->second;
}

void synchronize_device(Device& device, int32_t milliseconds) {
  std::optional<Error> first;
  for (const std::shared_ptr<Stream>& stream : all_streams()) {
    if (&stream->device != &device) continue;
    try {
      stream->synchronize(milliseconds);
    } catch (const Error& error) {
      if (!first) first = error;
    }
  }
  if (first) throw *first;
  device.check();
  device.raise_left_error();
}

}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

aclError aclrtCreateStream(aclrtStream* stream) {
  return api(__func__, [&] { out(stream, "stream") = create(); });
}

// Priorities and fast-launch flags affect when tasks run, not what they do: they are ignored.
aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) { return aclrtCreateStream(stream); }

aclError aclrtDestroyStream(aclrtStream stream) {
  return api(__func__, [&] { destroy(stream, false); });
}

aclError aclrtDestroyStreamForce(aclrtStream stream) {
  return api(__func__, [&] { destroy(stream, true); });
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t milliseconds) {
  return api(__func__, [&] {
    std::shared_ptr<Stream> stream = live_stream(handle);
    stream->synchronize(milliseconds);
    stream->device.raise_left_error();
  });
}

aclError aclrtSynchronizeStream(aclrtStream stream) { return aclrtSynchronizeStreamWithTimeout(stream, kForever); }

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus* status) {
  return api(__func__, [&] {
    out(status, "status") = live_stream(stream)->idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  });
}

// Reports of operators' shapes are for a profiler, and none is attached.
aclError aclrtSetStreamAttribute(aclrtStream stream, aclrtStreamAttr attribute, aclrtStreamAttrValue* value) {
  return api(__func__, [&] {
    live_stream(stream);
    out(value, "value");
    if (attribute != ACL_STREAM_ATTR_CACHE_OP_INFO) {
      throw Error(ACL_ERROR_API_NOT_SUPPORT, "the virtual CANN has no stream attribute " + std::to_string(attribute));
    }
  });
}

// A function of the runtime below ACL.
int rtGetTaskIdAndStreamID(uint32_t* task, uint32_t* stream) {
  return api(__func__, [&] {
    out(task, "taskId") = last_task_of_thread().task;
    out(stream, "streamId") = last_task_of_thread().stream;
  });
}

// Clears failed streams and lost devices, for which hardware would need a new process.
int virtual_cann_clear_errors() {
  return api(__func__, [] {
    for (const std::shared_ptr<Stream>& stream : all_streams()) stream->recover();
    uint32_t devices = 0;
    aclrtGetDeviceCount(&devices);
    for (uint32_t id = 0; id < devices; ++id) device(static_cast<int>(id)).recover();
    aclrtGetLastError(ACL_RT_THREAD_LEVEL);
  });
}

}  // extern "C"
