// SPDX-License-Identifier: Apache-2.0
// Tensors in UB and in GM. A tensor has an end that no instruction may pass, whatever lies behind it.
#pragma once

#include <string>
#include <type_traits>

#include "half.h"
#include "machine/core.h"
#include "types.h"

namespace virtual_cann::api {

struct Buffer;  // of a queue

template <class Number>
std::string text(Number number) {
  return std::to_string(number);
}

}  // namespace virtual_cann::api

namespace AscendC {

template <class T>
class GlobalTensor;

template <class T>
class LocalTensor {
 public:
  using PrimType = T;

  LocalTensor() = default;
  LocalTensor(uint32_t address, uint32_t bytes, virtual_cann::api::Buffer* buffer)
      : address_(address), bytes_(bytes), capacity_(bytes), buffer_(buffer) {}

  uint32_t GetSize() const { return bytes_ / sizeof(T); }
  void SetSize(uint32_t size, Place place = Place::here()) {
    if (const uint64_t bytes = uint64_t{size} * sizeof(T); bytes > capacity_) {
      auto& core = virtual_cann::Core::current();
      core.issue(virtual_cann::Pipe::S, "SetSize", place);
      core.stop(virtual_cann::Rule::ub_bounds,
                "at most the " + virtual_cann::api::text(capacity_) + " bytes that the tensor was given",
                virtual_cann::api::text(bytes));
    }
    bytes_ = static_cast<uint32_t>(size * sizeof(T));
  }

  LocalTensor operator[](uint32_t offset) const {
    const uint64_t skipped = static_cast<uint64_t>(offset) * sizeof(T);
    return {address_ + static_cast<uint32_t>(skipped), skipped < bytes_ ? bytes_ - static_cast<uint32_t>(skipped) : 0,
            buffer_};
  }

  template <class U>
  LocalTensor<U> ReinterpretCast() const {
    LocalTensor<U> other(address_, bytes_, buffer_);
    other.capacity_ = capacity_;
    return other;
  }

  T GetValue(uint32_t index, Place place = Place::here()) const {
    auto& core = begin("GetValue", index, place);
    return load(core, index);
  }

  template <class S>
  void SetValue(uint32_t index, S value, Place place = Place::here()) const {
    auto& core = begin("SetValue", index, place);
    store(core, index, static_cast<T>(value));
  }

  // The type of t(i): reading it calls GetValue, assigning to it calls SetValue.
  class Element {
   public:
    Element(const LocalTensor& tensor, uint32_t index, Place place) : tensor_(tensor), index_(index), place_(place) {}
    operator T() const { return tensor_.GetValue(index_, place_); }
    const Element& operator=(T value) const {
      tensor_.SetValue(index_, value, place_);
      return *this;
    }
    const Element& operator=(const Element& other) const { return *this = static_cast<T>(other); }

   private:
    LocalTensor tensor_;
    uint32_t index_;
    Place place_;
  };
  Element operator()(uint32_t index, Place place = Place::here()) const { return {*this, index, place}; }

  // For the instructions of this directory; not names of the real API.
  uint32_t address() const { return address_; }
  uint32_t bytes() const { return bytes_; }
  virtual_cann::api::Buffer* buffer() const { return buffer_; }

 private:
  template <class U>
  friend class LocalTensor;

  virtual_cann::Core& begin(const char* api, uint32_t index, Place place) const {
    auto& core = virtual_cann::Core::current();
    core.issue(virtual_cann::Pipe::S, api, place);
    if (index >= GetSize())
      core.stop(virtual_cann::Rule::ub_bounds, "an index below " + virtual_cann::api::text(GetSize()),
                virtual_cann::api::text(index));
    return core;
  }
  T load(virtual_cann::Core& core, uint32_t index) const {
    T value;
    std::memcpy(&value, core.read(address_ + index * sizeof(T), sizeof(T)), sizeof(T));
    return value;
  }
  void store(virtual_cann::Core& core, uint32_t index, T value) const {
    std::memcpy(core.write(address_ + index * sizeof(T), sizeof(T)), &value, sizeof(T));
  }

  uint32_t address_ = 0;
  uint32_t bytes_ = 0;
  uint32_t capacity_ = 0;  // the limit of SetSize
  virtual_cann::api::Buffer* buffer_ = nullptr;
};

template <class T>
class GlobalTensor {
 public:
  using PrimType = T;

  void SetGlobalBuffer(T* buffer, uint64_t size) {
    pointer_ = buffer;
    size_ = size;
  }
  void SetGlobalBuffer(T* buffer) { SetGlobalBuffer(buffer, kUnknownSize); }

  uint64_t GetSize() const { return size_ == kUnknownSize ? 0 : size_; }
  const T* GetPhyAddr() const { return pointer_; }
  T* GetPhyAddr(uint64_t offset) const { return pointer_ + offset; }

  GlobalTensor operator[](uint64_t offset) const {
    GlobalTensor rest = *this;
    rest.pointer_ += offset;
    if (size_ != kUnknownSize) rest.size_ = offset < size_ ? size_ - offset : 0;
    return rest;
  }

  // The real headers do nothing unless L2_CACHE_HINT is defined, as -x asc does and -xcce does not.
  template <CacheRwMode mode = CacheRwMode::RW>
  void SetL2CacheHint([[maybe_unused]] CacheMode cache) {
#ifdef L2_CACHE_HINT
    through_l2_ = cache != CacheMode::CACHE_MODE_DISABLE;
#endif
  }

  T GetValue(uint64_t index, Place place = Place::here()) const {
    auto& core = begin("GetValue", index, place);
    T value;
    std::memcpy(&value, core.gm_read(pointer_ + index, sizeof(T)), sizeof(T));
    return value;
  }

  void SetValue(uint64_t index, T value, Place place = Place::here()) {
    auto& core = begin("SetValue", index, place);
    std::memcpy(core.gm_write(pointer_ + index, sizeof(T)), &value, sizeof(T));
  }

  // For DMA: stops unless the tensor has `bytes` left of its SetGlobalBuffer size.
  void require(virtual_cann::Core& core, uint64_t bytes) const {
    if (size_ != kUnknownSize && bytes > size_ * sizeof(T))
      core.stop(virtual_cann::Rule::gm_bounds,
                "at most the " + virtual_cann::api::text(size_ * sizeof(T)) + " bytes left of SetGlobalBuffer's",
                virtual_cann::api::text(bytes));
  }
  T* pointer() const { return pointer_; }
  bool through_l2() const { return through_l2_; }

 private:
  static constexpr uint64_t kUnknownSize = ~uint64_t{0};

  virtual_cann::Core& begin(const char* api, uint64_t index, Place place) const {
    auto& core = virtual_cann::Core::current();
    core.issue(virtual_cann::Pipe::S, api, place);
    if (index >= size_)  // a negative index wraps to a large one
      core.stop(virtual_cann::Rule::gm_bounds, "an index below SetGlobalBuffer's " + virtual_cann::api::text(size_),
                virtual_cann::api::text(index));
    return core;
  }

  T* pointer_ = nullptr;
  uint64_t size_ = kUnknownSize;
  bool through_l2_ = true;
};

}  // namespace AscendC
