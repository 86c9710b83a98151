// SPDX-License-Identifier: Apache-2.0
// Copies and fills. Source and destination are checked at the call, and those on the device again when the task runs:
// the memory may have been freed in between.
#include <cstring>

#include "capture.h"
#include "memory.h"

namespace virtual_cann {
namespace {

enum class Side { host, device };

Side side(bool device) { return device ? Side::device : Side::host; }

struct Copy {
  uint8_t* to;
  const uint8_t* from;
  uint64_t bytes;
  Side to_side, from_side;

  Copy(void* to, size_t room, const void* from, size_t bytes, aclrtMemcpyKind kind)
      : to(static_cast<uint8_t*>(to)), from(static_cast<const uint8_t*>(from)), bytes(bytes) {
    if (bytes > room) {
      throw Error(ACL_ERROR_RT_PARAM_INVALID,
                  std::to_string(bytes) + " bytes do not fit a destination of " + std::to_string(room));
    }
    switch (kind) {
      case ACL_MEMCPY_HOST_TO_HOST:
      case ACL_MEMCPY_HOST_TO_DEVICE:
      case ACL_MEMCPY_DEVICE_TO_HOST:
      case ACL_MEMCPY_DEVICE_TO_DEVICE:
        from_side = side(kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE);
        to_side = side(kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE);
        break;
      case ACL_MEMCPY_INNER_DEVICE_TO_DEVICE:
      case ACL_MEMCPY_INTER_DEVICE_TO_DEVICE:
        from_side = to_side = Side::device;
        break;
      case ACL_MEMCPY_DEFAULT:
        from_side = side(find_region(from) != nullptr);
        to_side = side(find_region(to) != nullptr);
        break;
      default:
        throw Error(ACL_ERROR_API_NOT_SUPPORT, "the virtual CANN has no memcpy kind " + std::to_string(kind));
    }
    check(to, to_side, "destination");
    check(from, from_side, "source");
  }

  void check(const void* pointer, Side side, const char* name) const {
    if (side == Side::host) {
      require_host(pointer, name);
    } else {
      require_region(pointer, bytes, name);
    }
  }

  // A captured copy is repeated by the hardware at each run, which can only access pinned host memory.
  void check_capturable(Capture& capture) const {
    if ((to_side == Side::host && !is_pinned(to)) || (from_side == Side::host && !is_pinned(from))) {
      capture.refuse(ACL_ERROR_RT_CAPTURE_MODE_BLOCK_ASYNC, "a copy of host memory that is not of aclrtMallocHost");
    }
  }

  void run() const {
    RegionHold to_hold, from_hold;
    if (to_side == Side::device) to_hold = require_region(to, bytes, "destination");
    if (from_side == Side::device) from_hold = require_region(from, bytes, "source");
    std::memmove(to, from, bytes);
  }
};

void fill(void* to, int32_t value, size_t bytes) {
  RegionHold hold = require_region(to, bytes, "destination");
  std::memset(to, value, bytes);
}

void check_fill(void* to, size_t room, size_t bytes) {
  if (bytes > room) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID,
                std::to_string(bytes) + " bytes do not fit a destination of " + std::to_string(room));
  }
  require_region(to, bytes, "destination");
}

}  // namespace
}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

aclError aclrtMemcpy(void* to, size_t room, const void* from, size_t bytes, aclrtMemcpyKind kind) {
  return api(__func__, [&] {
    check_current_device();
    require_no_capture_forbids("aclrtMemcpy");
    Copy(to, room, from, bytes, kind).run();
  });
}

aclError aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t bytes, aclrtMemcpyKind kind,
                          aclrtStream stream) {
  return api(__func__, [&] {
    Copy copy(to, room, from, bytes, kind);
    std::shared_ptr<Stream> queue = live_stream(stream);
    if (const std::shared_ptr<Capture> capture = queue->capture()) copy.check_capturable(*capture);
    queue->enqueue("aclrtMemcpyAsync", [copy] { copy.run(); });
  });
}

aclError aclrtMemset(void* to, size_t room, int32_t value, size_t bytes) {
  return api(__func__, [&] {
    require_no_capture_forbids("aclrtMemset");
    check_fill(to, room, bytes);
    fill(to, value, bytes);
  });
}

aclError aclrtMemsetAsync(void* to, size_t room, int32_t value, size_t bytes, aclrtStream stream) {
  return api(__func__, [&] {
    check_fill(to, room, bytes);
    live_stream(stream)->enqueue("aclrtMemsetAsync", [=] { fill(to, value, bytes); });
  });
}

}  // extern "C"
