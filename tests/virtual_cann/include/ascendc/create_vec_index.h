// SPDX-License-Identifier: Apache-2.0
// CreateVecIndex, in its count form. A2 has no instruction for it: the scalar unit stores the first block without
// waiting for any pipe; then V adds a step to the values before, a block and later a repeat at a time, with barriers
// between these additions and none after the last (kernel_operator_vec_createvecindex_impl.h). The page CreateVecIndex
// promises no order. The masked forms are not modelled: with less than a block of lanes, those of the headers read the
// block before dst.
#pragma once

#include "elementwise.h"
#include "events.h"
#include "vector_binary.h"

namespace virtual_cann::api {

// CANN 8.1 stores the whole block, later releases only `count` elements: the elements after these are undefined. Up to
// CANN 8.5 the values are sums of floats, whose 24 bits are fewer than int32_t's.
template <class T>
void store_first_block(Core& core, AscendC::Place place, const AscendC::LocalTensor<T>& dst, T first, uint32_t count) {
  core.issue(Pipe::S, "CreateVecIndex", place);
  if (dst.bytes() < kBlockBytes)
    core.stop(Rule::ub_bounds, "a dst of at least one block of 32 bytes", text(dst.bytes()) + " bytes");
  for (uint32_t i = 0; i < kBlockBytes / sizeof(T); ++i) {
    const auto at = static_cast<uint32_t>(dst.address() + i * sizeof(T));
    if (i >= count) {
      core.scribble(at, sizeof(T));
      continue;
    }
    const auto value = static_cast<T>(static_cast<float>(first) + static_cast<float>(i));
    std::memcpy(core.write(at, sizeof(T)), &value, sizeof(T));
  }
  order_pipes(core, Pipe::S, Pipe::V);
}

template <class T>
void count_up(AscendC::Place place, const AscendC::LocalTensor<T>& dst, T first, uint32_t count) {
  Core& core = Core::current();
  constexpr uint32_t block = kBlockBytes / sizeof(T), repeat = kRepeatBytes / sizeof(T);
  store_first_block(core, place, dst, first, count);
  for (uint32_t at = block, step = block; at < count; at += step) {
    if (at > block) core.barrier(Pipe::V);
    if (at == repeat) step = repeat;
    const auto add = [step](auto x) { return sum_of(x, static_cast<decltype(x)>(step)); };
    const AscendC::UnaryRepeatParams side_by_side;
    const Repeated<AscendC::UnaryRepeatParams> shape{std::min(step, count - at), 1, side_by_side};
    elementwise<Numbers, true>({"CreateVecIndex", place, VectorClass::simple}, add, shape, dst[at], dst[at - step]);
  }
}

}  // namespace virtual_cann::api

namespace AscendC {

template <typename T>
void CreateVecIndex(LocalTensor<T> dst, const T& firstValue, uint32_t count, Place place = Place::here()) {
  using namespace virtual_cann::api;
  if constexpr (Numbers::has<T>)
    count_up(place, dst, firstValue, count);
  else
    VectorCall("CreateVecIndex", place, VectorClass::simple).wrong_type();
}

}  // namespace AscendC
