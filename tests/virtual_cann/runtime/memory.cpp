// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "devices.h"
#include "faults.h"
#include "settings.h"

namespace virtual_cann {
namespace {

// All bytes 0xFF: NaN in each floating dtype, -1 in the integers.
constexpr int kJunk = 0xFF;
constexpr uint64_t kJunkBytes = 4 << 20;
constexpr uint64_t kPage = 4096;
constexpr size_t kRemembered = 1024;

// A file of junk that every region maps privately: a block costs no memory or time until it is written.
int junk_file() {
  static const int file = [] {
    int file = memfd_create("virtual_cann_junk", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, kJunkBytes) != 0) throw Error(ACL_ERROR_INTERNAL_ERROR, "memfd_create failed");
    void* junk = mmap(nullptr, kJunkBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (junk == MAP_FAILED) throw Error(ACL_ERROR_INTERNAL_ERROR, "mmap failed");
    std::memset(junk, kJunk, kJunkBytes);
    munmap(junk, kJunkBytes);
    return file;
  }();
  return file;
}

uint64_t mapped_bytes(uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

struct Freed {
  const uint8_t* start;
  uint64_t bytes;
  int device;
};

struct Register {
  std::mutex mutex;
  std::map<const uint8_t*, RegionHold> live;  // by start
  std::map<int, uint64_t> in_use;             // bytes, by device
  std::deque<Freed> freed;                    // the latest, for error messages
};

// Never destroyed: threads of streams may outlive main.
Register& the_register() {
  static auto* only = new Register;
  return *only;
}

RegionHold find_locked(const Register& all, const uint8_t* pointer) {
  auto after = all.live.upper_bound(pointer);
  if (after == all.live.begin()) return nullptr;
  const RegionHold& region = std::prev(after)->second;
  return pointer < region->start + region->bytes ? region : nullptr;
}

std::string describe(const uint8_t* start, uint64_t bytes, int device) {
  return "[" + hex(start) + ", " + hex(start + bytes) + ") of " + std::to_string(bytes) + " bytes on device " +
         std::to_string(device);
}

// Has the code and the words by which torch_npu recognises CANN's own message.
[[noreturn]] void out_of_memory(int device, uint64_t bytes, const std::string& why) {
  throw Error(ACL_ERROR_RT_MEMORY_ALLOCATION, "EL0004: Failed to allocate " + std::to_string(bytes) +
                                                  " bytes of memory on device " + std::to_string(device) + ": " + why);
}

}  // namespace

Region::Region(int device, uint64_t bytes) : bytes(bytes), device(device) {
  uint64_t all = mapped_bytes(bytes);
  void* place = mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) out_of_memory(device, bytes, "the host has no more address space");
  start = static_cast<uint8_t*>(place);
  for (uint64_t done = 0; done < all; done += kJunkBytes) {
    void* mapped = mmap(start + done, std::min(kJunkBytes, all - done), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, junk_file(), 0);
    if (mapped == MAP_FAILED) {
      munmap(start, all);
      out_of_memory(device, bytes, "the host has no more mappings");
    }
  }
}

Region::~Region() { munmap(start, mapped_bytes(bytes)); }

RegionHold allocate(int device, uint64_t bytes) {
  if (bytes == 0) throw Error(ACL_ERROR_RT_PARAM_INVALID, "size must not be 0");
  if (allocation_must_fail()) out_of_memory(device, bytes, "VIRTUAL_CANN_FAULTS says so");
  Register& all = the_register();
  std::lock_guard lock(all.mutex);
  uint64_t limit = settings().memory_bytes;
  uint64_t& in_use = all.in_use[device];
  if (bytes > limit || in_use > limit - bytes) {
    out_of_memory(device, bytes, std::to_string(limit - in_use) + " of " + std::to_string(limit) + " are free");
  }
  auto region = std::make_shared<Region>(device, bytes);
  all.live.emplace(region->start, region);
  in_use += bytes;
  return region;
}

void release(void* start) {
  Register& all = the_register();
  RegionHold last;  // released, and unmapped, after the lock
  std::lock_guard lock(all.mutex);
  auto found = all.live.find(static_cast<const uint8_t*>(start));
  if (found == all.live.end()) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID, hex(start) + " is not the start of a live device allocation");
  }
  last = found->second;
  all.live.erase(found);
  all.in_use[last->device] -= last->bytes;
  all.freed.push_back({last->start, last->bytes, last->device});
  if (all.freed.size() > kRemembered) all.freed.pop_front();
}

uint64_t bytes_in_use(int device) {
  Register& all = the_register();
  std::lock_guard lock(all.mutex);
  return all.in_use[device];
}

RegionHold find_region(const void* pointer) {
  Register& all = the_register();
  std::lock_guard lock(all.mutex);
  return find_locked(all, static_cast<const uint8_t*>(pointer));
}

RegionHold require_region(const void* pointer, uint64_t bytes, const std::string& what) {
  Register& all = the_register();
  std::lock_guard lock(all.mutex);
  const auto* first = static_cast<const uint8_t*>(pointer);
  RegionHold region = find_locked(all, first);
  if (region && bytes <= static_cast<uint64_t>(region->start + region->bytes - first)) return region;
  std::string asked = what + " " + hex(pointer) + ", " + std::to_string(bytes) + " bytes, ";
  if (region) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID,
                asked + "runs past the end of " + describe(region->start, region->bytes, region->device));
  }
  for (auto freed = all.freed.rbegin(); freed != all.freed.rend(); ++freed) {
    if (freed->start <= first && first < freed->start + freed->bytes) {
      throw Error(ACL_ERROR_RT_PARAM_INVALID,
                  asked + "was freed: it lies in what was " + describe(freed->start, freed->bytes, freed->device));
    }
  }
  throw Error(ACL_ERROR_RT_PARAM_INVALID, asked + "is not device memory: no live allocation holds it");
}

void require_host(const void* pointer, const std::string& what) {
  if (pointer == nullptr) throw Error(ACL_ERROR_RT_PARAM_INVALID, what + " must not be null");
  if (RegionHold region = find_region(pointer)) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID, what + " " + hex(pointer) + " must be host memory, but lies in " +
                                                describe(region->start, region->bytes, region->device));
  }
}

}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

aclError aclrtMalloc(void** pointer, size_t bytes, aclrtMemMallocPolicy) {
  return api(__func__, [&] {
    current_device().check();
    out(pointer, "devPtr") = allocate(current_device().id, bytes)->start;
  });
}

// Pages are aligned to more than 32 bytes.
aclError aclrtMallocAlign32(void** pointer, size_t bytes, aclrtMemMallocPolicy policy) {
  return aclrtMalloc(pointer, bytes, policy);
}

aclError aclrtFree(void* pointer) {
  return api(__func__, [&] { release(pointer); });
}

}  // extern "C"
