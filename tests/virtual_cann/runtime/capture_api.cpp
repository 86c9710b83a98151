// SPDX-License-Identifier: Apache-2.0
// The functions aclmdlRI...: a "model running instance" is a capture.
#include <algorithm>

#include "capture.h"

namespace virtual_cann {
namespace {

struct Captures {
  std::mutex mutex;
  std::map<const void*, std::shared_ptr<Capture>> live;
};

Captures& captures() {
  static auto* all = new Captures;
  return *all;
}

thread_local aclmdlRICaptureMode exchanged_mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;

void forget(const void* handle) {
  std::lock_guard lock(captures().mutex);
  captures().live.erase(handle);
}

std::shared_ptr<Capture> live_capture(aclmdlRI handle) {
  std::lock_guard lock(captures().mutex);
  auto found = captures().live.find(handle);
  if (found == captures().live.end()) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID,
                hex(handle) + " is not a live model: aclmdlRICaptureEnd did not give it, or it was destroyed");
  }
  return found->second;
}

void check_mode(aclmdlRICaptureMode mode) {
  if (mode < ACL_MODEL_RI_CAPTURE_MODE_GLOBAL || mode > ACL_MODEL_RI_CAPTURE_MODE_RELAXED) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID, "there is no capture mode " + std::to_string(mode));
  }
}

std::shared_ptr<Capture> capture_to_end(Stream& stream) {
  std::shared_ptr<Capture> capture = stream.capture();
  if (!capture) throw Error(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "the stream is not being captured");
  if (&capture->origin != &stream) {
    throw Error(ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED,
                "the capture began on another stream, and this one joined it; end it on that one");
  }
  return capture;
}

void end(Capture& capture) {
  try {
    capture.end();
    if (capture.mode != ACL_MODEL_RI_CAPTURE_MODE_RELAXED && capture.began_in != std::this_thread::get_id()) {
      throw Error(ACL_ERROR_RT_STREAM_CAPTURE_WRONG_THREAD,
                  "the capture began in another thread; end it there, or begin it in mode RELAXED");
    }
  } catch (const Error&) {
    forget(&capture);
    throw;
  }
}

}  // namespace

// A larger mode is more lenient, so the strictest mode is the smallest.
void require_no_capture_forbids(const char* call) {
  if (exchanged_mode == ACL_MODEL_RI_CAPTURE_MODE_RELAXED) return;
  std::vector<std::shared_ptr<Capture>> active;
  {
    std::lock_guard lock(captures().mutex);
    for (const auto& entry : captures().live) {
      if (entry.second->active() && &entry.second->origin.device == &current_device()) active.push_back(entry.second);
    }
  }
  for (const std::shared_ptr<Capture>& capture : active) {
    const bool ours = capture->began_in == std::this_thread::get_id();
    const bool forbids = exchanged_mode == ACL_MODEL_RI_CAPTURE_MODE_GLOBAL
                             ? capture->mode == ACL_MODEL_RI_CAPTURE_MODE_GLOBAL ||
                                   (ours && capture->mode == ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL)
                             : ours && capture->mode != ACL_MODEL_RI_CAPTURE_MODE_RELAXED;
    if (forbids) capture->refuse(ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT, call);
  }
}

}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

aclError aclmdlRICaptureBegin(aclrtStream handle, aclmdlRICaptureMode mode) {
  return api(__func__, [&] {
    check_mode(mode);
    std::shared_ptr<Stream> stream = live_stream(handle);
    auto capture = std::make_shared<Capture>(*stream, mode);
    stream->enter(capture);
    std::lock_guard lock(captures().mutex);
    captures().live[capture.get()] = capture;
  });
}

aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus* status, aclmdlRI* model) {
  return api(__func__, [&] {
    const std::shared_ptr<Capture> capture = live_stream(stream)->capture();
    if (model != nullptr) *model = capture.get();
    if (status == nullptr) return;
    *status = !capture           ? ACL_MODEL_RI_CAPTURE_STATUS_NONE
              : capture->valid() ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE
                                 : ACL_MODEL_RI_CAPTURE_STATUS_INVALIDATED;
  });
}

aclError aclmdlRICaptureEnd(aclrtStream handle, aclmdlRI* model) {
  return api(__func__, [&] {
    out(model, "modelRI") = nullptr;
    std::shared_ptr<Capture> capture = capture_to_end(*live_stream(handle));
    end(*capture);
    *model = capture.get();
  });
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
  return api(__func__, [&] {
    check_mode(out(mode, "mode"));
    std::swap(*mode, exchanged_mode);
  });
}

aclError aclmdlRIExecuteAsync(aclmdlRI model, aclrtStream handle) {
  return api(__func__, [&] {
    std::shared_ptr<Capture> capture = live_capture(model);
    std::shared_ptr<Stream> stream = live_stream(handle);
    if (capture->active()) {
      throw Error(ACL_ERROR_RT_MODEL_CAPTURED, "the model is still being captured; call aclmdlRICaptureEnd first");
    }
    if (stream->capture()) stream->capture()->refuse(ACL_ERROR_RT_STREAM_CAPTURED, "aclmdlRIExecuteAsync");
    capture->run(*stream);
  });
}

// Runs that were put on a stream before still run: their tasks are the stream's.
aclError aclmdlRIDestroy(aclmdlRI model) {
  return api(__func__, [&] {
    if (live_capture(model)->active()) {
      throw Error(ACL_ERROR_RT_MODEL_CAPTURED, "the model is still being captured; call aclmdlRICaptureEnd first");
    }
    forget(model);
  });
}

}  // extern "C"
