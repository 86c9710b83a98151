// SPDX-License-Identifier: Apache-2.0
// How a row is cut. These sizes are constants, so the bits of a sum do not depend on the threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "problem.h"
#include "simd/ops.h"

namespace npu_ce {

// A block stays in L1 while it is worked on. Sums are float within a block, and double from one block to the next.
#ifndef NPU_CE_BLOCK_ELEMS
#define NPU_CE_BLOCK_ELEMS 2048
#endif
constexpr int64_t kBlockElems = NPU_CE_BLOCK_ELEMS;
static_assert(kBlockElems % 64 == 0, "only the last block of a row may end within a vector, or within four of them");
// A chunk is what one thread takes when the rows are too few for all threads.
constexpr int64_t kChunkElems = 8 * kBlockElems;
// Below this many logits a parallel call costs more than it saves.
constexpr int64_t kSerialElems = 32768;

inline int64_t chunk_count(int64_t classes) { return (classes + kChunkElems - 1) / kChunkElems; }

template <class F>
void for_each_block(int64_t begin, int64_t end, F&& body) {
  for (int64_t at = begin; at < end; at += kBlockElems) body(at, std::min(kBlockElems, end - at));
}

// Calls value(column, lanes) for every vector of a row and stores what it returns; lanes is below kLanes for the last
// one only. Plain stores: non-temporal ones were no faster on huge pages, which is where large outputs are written.
template <class T, class F>
NPU_CE_INLINE void write_columns(T* to, int64_t count, F&& value) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t column = 0;
  for (; column + 2 * lanes <= count; column += 2 * lanes) {
    const auto first = value(column, lanes);
    const auto second = value(column + lanes, lanes);
    store(to + column, first);
    store(to + column + lanes, second);
  }
  for (; column < count; column += lanes) {
    const int64_t left = std::min(lanes, count - column);
    store_partial(to + column, value(column, left), left);
  }
}

// Writes value(x) for every element x, in place or elsewhere.
template <class T, class F>
NPU_CE_INLINE void transform_columns(const T* from, T* to, int64_t count, F&& value) {
  constexpr int64_t pair = 2 * kLanes<T>;
  constexpr int64_t step = 2 * pair;
  const auto transform_step = [&](const T* step_from, T* step_to) __attribute__((always_inline)) {
    for (int64_t i = 0; i < step; i += pair) {
      const Pair<Vec<T>> x = load_pair(step_from + i);
      store_pair(step_to + i, {value(x.first), value(x.second)});
    }
  };
  int64_t column = 0;
  for (; column + step <= count; column += step) {
    prefetch<step>(from + column);
    transform_step(from + column, to + column);
  }
  if (column == count) return;
  T rest[step] = {};
  const size_t rest_bytes = static_cast<size_t>(count - column) * sizeof(T);
  std::memcpy(static_cast<void*>(rest), from + column, rest_bytes);
  transform_step(rest, rest);
  std::memcpy(static_cast<void*>(to + column), rest, rest_bytes);
}

// Each index is worked on alone, so the bits are the same for any number of threads.
template <class F>
void parallel_for(const Parallel& parallel, int64_t count, int64_t grain, F&& body) {
  using Body = std::remove_reference_t<F>;
  parallel.run(
      0, count, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

}  // namespace npu_ce
