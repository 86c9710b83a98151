// SPDX-License-Identifier: Apache-2.0
// Device memory, which is host memory, and the register of live regions. A pointer is device memory if and only if it
// lies in a live region.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace virtual_cann {

struct Region {
  Region(int device, uint64_t bytes);  // filled with junk; throws Error if the host has no room
  ~Region();
  Region(const Region&) = delete;
  uint8_t* start;
  uint64_t bytes;
  int device;
};

// Keeps the memory mapped: a task does not crash if its memory is freed while it runs.
using RegionHold = std::shared_ptr<const Region>;

RegionHold allocate(int device, uint64_t bytes);
void release(void* start);
uint64_t bytes_in_use(int device);

// Null if no live region holds the byte.
RegionHold find_region(const void* pointer);
// Throws Error, with `what` as the subject, unless one live region holds all the bytes.
RegionHold require_region(const void* pointer, uint64_t bytes, const std::string& what);
// Whether it is host memory from aclrtMallocHost.
bool is_pinned(const void* pointer);
// Throws Error if the pointer is device memory.
void require_host(const void* pointer, const std::string& what);

}  // namespace virtual_cann
