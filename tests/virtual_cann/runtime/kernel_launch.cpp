// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <cstdio>
#include <vector>

#include "../machine/run.h"
#include "faults.h"
#include "memory.h"
#include "reports.h"
#include "settings.h"
#include "streams.h"

namespace virtual_cann {
namespace {

constexpr uint32_t kMostBlocks = 65535;

std::atomic<uint32_t> every_nth_block{1};

// Finds the memory that the kernel may touch: live memory of its device, which stays mapped until the launch is over.
class Lookup {
 public:
  explicit Lookup(int device) : device_(device) {}

  bool operator()(const void* pointer, GmRegion* found) {
    RegionHold region = find_region(pointer);
    if (!region || region->device != device_) return false;
    *found = {region->start, region->bytes};
    std::lock_guard lock(mutex_);
    if (held_.empty() || held_.back() != region) held_.push_back(std::move(region));
    return true;
  }

 private:
  const int device_;
  std::mutex mutex_;
  std::vector<RegionHold> held_;
};

void run(const KernelLaunch& launch, int device) {
  Lookup lookup(device);
  Report report = run_kernel(launch, *settings().hardware, std::ref(lookup), {settings().auto_sync, every_nth_block});
  keep_report(report.json());
  if (!report.failed()) return;
  std::fprintf(stderr, "[virtual CANN] kernel %s failed\n%s\n", launch.kernel.c_str(), report.message().c_str());
  throw Error(ACL_ERROR_RT_VECTOR_CORE_EXCEPTION, report.message());
}

void enqueue(KernelLaunch launch, Stream& stream) {
  if (launch.blocks == 0 || launch.blocks > kMostBlocks) {
    throw Error(ACL_ERROR_RT_PARAM_INVALID,
                std::to_string(launch.blocks) + " blocks: expected 1 to " + std::to_string(kMostBlocks));
  }
  std::string name = "kernel " + launch.kernel;
  const LaunchFault fault = fault_of_launch();
  if (fault == LaunchFault::refused) throw Error(ACL_ERROR_RT_INTERNAL_ERROR, "VIRTUAL_CANN_FAULTS says so");
  if (fault == LaunchFault::fails) {
    stream.enqueue(name, [] { throw Error(ACL_ERROR_RT_VECTOR_CORE_EXCEPTION, "VIRTUAL_CANN_FAULTS says so"); });
    return;
  }
  stream.enqueue(name, [launch = std::move(launch), device = stream.device.id] { run(launch, device); });
}

// Prints the words of the host code that CANN 8.5's plugin generates.
void print_as_plugin(const std::string& kernel, uint32_t blocks, void* stream, aclError code) {
  std::printf("[ERROR] [AscPlugin] AscendKernelLaunchWithFlagV2 ret %d\n", code);
  std::printf("[ERROR] [AscPlugin] Kernel: [%s] Stream: [%p] BlockDim: [%u] kernel launch failure!\n", kernel.c_str(),
              stream, blocks);
}

}  // namespace

// The launch syntax returns nothing: the error of a refused launch becomes the thread's last error, and the device's
// next synchronise throws it.
void enqueue_kernel(KernelLaunch launch, void* handle) {
  const std::string kernel = launch.kernel;
  const uint32_t blocks = launch.blocks;
  const bool through_plugin = launch.through_plugin;
  std::string name = "launch of kernel " + kernel;
  api(name.c_str(), [&] {
    Device* device = &current_device();
    try {
      std::shared_ptr<Stream> stream = live_stream(handle);
      device = &stream->device;
      enqueue(std::move(launch), *stream);
    } catch (const Error& error) {
      if (through_plugin) return print_as_plugin(kernel, blocks, handle, error.code);
      Error named(error.code, name + " refused: " + error.what());
      device->leave_error(named);
      throw error;
    }
  });
}

}  // namespace virtual_cann

extern "C" void virtual_cann_run_every_nth_block(uint32_t n) { virtual_cann::every_nth_block = n; }
