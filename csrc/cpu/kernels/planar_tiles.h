// SPDX-License-Identifier: Apache-2.0
// How [N, C, L] logits are cut, whose positions lie side by side: into tiles of neighbouring positions, a lane for
// each, and a tile into blocks of classes, so that few streams of memory are read at once. The sizes depend on nothing
// but the shape, so neither do the bits of any sum.
#pragma once

#include "logits.h"

namespace npu_ce {

constexpr int64_t kTilePositions = 512;
// A block's vectors are read twice, for the max and for exp. Where the planes' distance is a power of two, all lines of
// a vector fall into one set of L1, which has eight.
constexpr int64_t kBlockClasses = 8;

template <class T>
class PlanarTiles {
 public:
  using A = Acc<T>;

  struct Tile {
    int64_t first_row;
    int64_t image;
    int64_t position;  // in its image, the first
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

  // The positions of a tile that fill no vector.
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
