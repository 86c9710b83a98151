// SPDX-License-Identifier: Apache-2.0
// The devices of the process, and the one that is current in each thread.
#pragma once

#include <mutex>
#include <optional>

#include "core_limits.h"
#include "errors.h"

namespace virtual_cann {

class Device {
 public:
  explicit Device(int id) : id(id) {}
  const int id;
  CoreLimits limits;

  void lose();
  bool lost() const;

  // From now on, every use of the device throws this error, until the process ends.
  void fail(const Error& error);
  // Throws if the device is lost or failed.
  void check() const;

  // The next synchronise throws this error: a refused launch could not return it.
  void leave_error(const Error& error);
  void raise_left_error();

  // Clears all but a failure: nothing revives torch_npu's queue.
  void recover();

 private:
  mutable std::mutex mutex_;
  bool lost_ = false;
  std::optional<Error> failure_;
  std::optional<Error> left_error_;
};

// Throws if there is no such device.
Device& device(int id);
// Throws if this thread has set none.
Device& current_device();
// If a device is set: throws if it is lost or failed.
void check_current_device();

// torch_npu reports an error on its queue's thread once, and then silently drops queued work, so that its tensors hold
// junk. Such an error therefore fails the device.
void keep_error_of_queue_thread(const Error& error);

}  // namespace virtual_cann
