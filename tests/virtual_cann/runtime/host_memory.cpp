// SPDX-License-Identifier: Apache-2.0
// Pinned host memory is ordinary memory; a register tells it from other memory.
#include <cstdlib>
#include <map>
#include <mutex>

#include "errors.h"
#include "memory.h"

namespace virtual_cann {
namespace {

constexpr size_t kAlignment = 64;

struct Pinned {
  std::mutex mutex;
  std::map<const char*, size_t> blocks;  // start -> bytes
};

Pinned& pinned() {
  static auto* only = new Pinned;
  return *only;
}

}  // namespace

bool is_pinned(const void* pointer) {
  std::lock_guard lock(pinned().mutex);
  auto after = pinned().blocks.upper_bound(static_cast<const char*>(pointer));
  if (after == pinned().blocks.begin()) return false;
  const auto& [start, bytes] = *std::prev(after);
  return static_cast<const char*>(pointer) < start + bytes;
}

}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

aclError aclrtMallocHost(void** pointer, size_t bytes) {
  return api(__func__, [&] {
    if (bytes == 0) throw Error(ACL_ERROR_RT_PARAM_INVALID, "size must not be 0");
    void* block = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (block == nullptr) {
      throw Error(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host has no " + std::to_string(bytes) + " bytes left");
    }
    std::lock_guard lock(pinned().mutex);
    pinned().blocks[static_cast<const char*>(block)] = bytes;
    out(pointer, "hostPtr") = block;
  });
}

aclError aclrtFreeHost(void* pointer) {
  return api(__func__, [&] {
    std::lock_guard lock(pinned().mutex);
    if (pinned().blocks.erase(static_cast<const char*>(pointer)) == 0) {
      throw Error(ACL_ERROR_RT_PARAM_INVALID, hex(pointer) + " is not a block that aclrtMallocHost gave");
    }
    std::free(pointer);
  });
}

aclError aclrtPointerGetAttributes(const void* pointer, aclrtPtrAttributes* attributes) {
  return api(__func__, [&] {
    out(attributes, "attributes") = {};
    RegionHold region = find_region(pointer);
    attributes->location.id = region ? static_cast<uint32_t>(region->device) : 0;
    attributes->location.type = region               ? ACL_MEM_LOCATION_TYPE_DEVICE
                                : is_pinned(pointer) ? ACL_MEM_LOCATION_TYPE_HOST
                                                     : ACL_MEM_LOCATION_TYPE_UNREGISTERED;
  });
}

}  // extern "C"
