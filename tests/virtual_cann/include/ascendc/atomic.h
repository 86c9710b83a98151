// SPDX-License-Identifier: Apache-2.0
// Addition in GM by MTE3's DMA (UB to GM).
#pragma once

#include "vector_binary.h"

namespace virtual_cann::api {

// The address of kTypeMark<T> identifies the type T.
template <class T>
inline constexpr char kTypeMark = 0;

using AtomicTypes = Types<int8_t, int16_t, half, bfloat16_t, int32_t, float>;

[[noreturn]] inline void refuse_atomic(Core& core) {
  core.stop(Rule::atomic_type, "int8_t, int16_t, int32_t, half, bfloat16_t or float", "another type");
}

// Stores `bytes` from UB to GM, in the current atomic mode.
template <class T>
void store_to_gm(Core& core, uint8_t* gm, const uint8_t* ub, uint32_t bytes) {
  if (core.atomic == AtomicMode::none) {
    std::memcpy(gm, ub, bytes);
  } else if constexpr (AtomicTypes::has<T>) {
    if (core.atomic_type != &kTypeMark<T>)
      core.violate(Rule::atomic_type, "a DMA of the type that SetAtomicAdd was given", "another type");
    for (uint32_t at = 0; at < bytes; at += sizeof(T)) {
      T sum, term;
      std::memcpy(&sum, gm + at, sizeof(T));
      std::memcpy(&term, ub + at, sizeof(T));
      sum = narrow<T>(sum_of(widen(sum), widen(term)));
      std::memcpy(gm + at, &sum, sizeof(T));
    }
  } else {
    refuse_atomic(core);
  }
}

}  // namespace virtual_cann::api

namespace AscendC {

template <typename T>
void SetAtomicAdd(Place place = Place::here()) {
  using namespace virtual_cann::api;
  Core& core = Core::current();
  core.issue(Pipe::S, "SetAtomicAdd", place);
  if (!AtomicTypes::has<T>) refuse_atomic(core);
  core.atomic = AtomicMode::add;
  core.atomic_type = &kTypeMark<T>;
}

inline void SetAtomicNone() { virtual_cann::Core::current().atomic = virtual_cann::AtomicMode::none; }

}  // namespace AscendC
