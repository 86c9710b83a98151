// SPDX-License-Identifier: Apache-2.0
// The devices of the process, and the one that is current in each thread.
#pragma once

#include <mutex>
#include <optional>

#include "errors.h"

namespace virtual_cann {

class Device {
 public:
  explicit Device(int id) : id(id) {}
  const int id;

  // A lost device stays lost until it is reset.
  void lose();
  void check_not_lost() const;
  bool lost() const;

  // A launch that was refused returned nothing: the next synchronise reports it, once.
  void leave_error(const Error& error);
  void raise_left_error();

  void recover();

 private:
  mutable std::mutex mutex_;
  bool lost_ = false;
  std::optional<Error> left_error_;
};

// Throws if there is no such device.
Device& device(int id);
// Throws if this thread has set none.
Device& current_device();

}  // namespace virtual_cann
