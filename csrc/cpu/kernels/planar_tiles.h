// SPDX-License-Identifier: Apache-2.0
// How [N, C, L] logits with contiguous positions are cut: into tiles of neighbouring positions, a lane for each, and a
// tile into blocks of classes, so that few streams of memory are read at once. The sizes depend on the shape alone, and
// so do the bits of every sum.
#pragma once

#include "class_weights.h"
#include "logits.h"

namespace npu_ce {

constexpr int64_t kTilePositions = 512;  // whole vectors of any type
// A block's vectors are read twice, for the max and for exp, so they should stay in L1. Where planes are a power of two
// apart, the lines of all classes at a position fall into one set of L1, which holds eight.
constexpr int64_t kBlockClasses = 8;

// The targets of a tile's positions. An ignored one is 0, so that a logit can be read for it too. Arrays end with a
// whole vector, and lanes behind the last position count as ignored.
template <class T>
struct TileTargets {
  using A = Acc<T>;
  using Index = typename Numeric<A>::Index;

  alignas(kVectorBytes) Index target[kTilePositions];
  alignas(kVectorBytes) Index counted[kTilePositions];  // all bits, or none where ignored
  alignas(kVectorBytes) A logit[kTilePositions];        // x'
  alignas(kVectorBytes) A slope[kTilePositions];        // d x' / d x
  alignas(kVectorBytes) A weight[kTilePositions];
};

template <class T>
class PlanarTiles {
 public:
  using A = Acc<T>;

  struct Tile {
    int64_t first_row;
    int64_t image;
    int64_t position;  // the first, within its image
    int64_t positions;
    const T* logits;
  };

  PlanarTiles(const Problem& problem, const Logits<T>& logits)
      : problem_(problem),
        logits_(logits),
        per_image_((problem.layout.positions + kTilePositions - 1) / kTilePositions),
        count_(problem.rows == 0 ? 0 : problem.rows / problem.layout.positions * per_image_) {}

  int64_t count() const { return count_; }

  Tile operator[](int64_t index) const {
    const Layout& layout = problem_.layout;
    const int64_t image = index / per_image_;
    const int64_t position = index % per_image_ * kTilePositions;
    return {image * layout.positions + position, image, position, std::min(kTilePositions, layout.positions - position),
            static_cast<const T*>(problem_.input) + image * layout.image_stride_elems + position};
  }

  // Calls body(from, stride, first_class, classes, begin, end) for x' of every block, with `stride` elements from one
  // class to the next; positions from `begin` to `end` are whole vectors, of which the last may run beyond the tile.
  template <class F>
  void for_each_block(const Tile& tile, F&& body) const {
    const int64_t stride = problem_.layout.class_stride_elems;
    const int64_t whole = tile.positions / kLanes<T> * kLanes<T>;
    for (int64_t first = 0; first < problem_.classes; first += kBlockClasses) {
      const int64_t classes = std::min(kBlockClasses, problem_.classes - first);
      const T* from = tile.logits + first * stride;
      if (!logits_.are_inputs()) {
        alignas(kVectorBytes) A staged[kBlockClasses * kTilePositions];
        for (int64_t c = 0; c < classes; ++c) {
          logits_.stage(from + c * stride, tile.positions, staged + c * kTilePositions, nullptr);
        }
        body(static_cast<const A*>(staged), kTilePositions, first, classes, int64_t{0}, tile.positions);
        continue;
      }
      body(from, stride, first, classes, int64_t{0}, whole);
      if (whole == tile.positions) continue;
      T rest[kBlockClasses * kLanes<T>] = {};
      copy_rest(from + whole, stride, rest, kLanes<T>, classes, tile.positions - whole);
      body(static_cast<const T*>(rest), int64_t{kLanes<T>}, first, classes, whole, tile.positions);
    }
  }

  NPU_CE_NOINLINE void read_targets(const Tile& tile, const ClassWeights<A>& weights, TileTargets<T>& to) const {
    const Targets& source = problem_.target;
    const bool may_read_whole_vectors = tile.positions % kLanes<double> == 0;
    int64_t copied[kTilePositions];
    const int64_t* targets = static_cast<const int64_t*>(source.data) + tile.first_row;
    if (!source.is_int64 || source.stride_elems != 1 || !may_read_whole_vectors) {
      for (int64_t i = 0; i < tile.positions; ++i) copied[i] = source[tile.first_row + i];
      targets = copied;
    }
    const Int64Vec ignored = Int64Vec{} + problem_.ignore_index;
    for (int64_t at = 0; at < tile.positions; at += kLanes<double>) {
      const Int64Vec target = load_bits<Int64Vec>(targets + at);
      const Int64Vec counted = target != ignored;
      store_indices(to.counted + at, counted);
      store_indices(to.target + at, target & counted);
    }
    for (int64_t i = tile.positions; i % kLanes<T> != 0; ++i) to.counted[i] = 0;

    const int64_t stride = problem_.layout.class_stride_elems;
    alignas(kVectorBytes) T logits[kTilePositions];
    for_each_position(
        tile, [&](int64_t i) __attribute__((always_inline)) { logits[i] = tile.logits[to.target[i] * stride + i]; });
    logits_.stage(logits, tile.positions, to.logit, to.slope);
    if (problem_.weight == nullptr) {
      for (int64_t at = 0; at < tile.positions; at += kLanes<T>) store(to.weight + at, splat(A(1)));
    } else {
      for (int64_t i = 0; i < tile.positions; ++i) to.weight[i] = *weights.from(to.target[i]);
    }
  }

  // Calls body(i) for every position of a tile, vector by vector so that little is spent on counting.
  template <class F>
  NPU_CE_INLINE static void for_each_position(const Tile& tile, F&& body) {
    int64_t i = 0;
    for (; i + kLanes<T> <= tile.positions; i += kLanes<T>) {
      NPU_CE_UNROLL
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) body(i + lane);
    }
    for (; i < tile.positions; ++i) body(i);
  }

  // Copies the last positions of a tile, which do not fill a vector.
  static void copy_rest(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t classes, int64_t count) {
    for (int64_t c = 0; c < classes; ++c) {
      std::memcpy(static_cast<void*>(to + c * to_stride), from + c * from_stride,
                  static_cast<size_t>(count) * sizeof(T));
    }
  }

 private:
  const Problem& problem_;
  const Logits<T>& logits_;
  int64_t per_image_;
  int64_t count_;
};

}  // namespace npu_ce
