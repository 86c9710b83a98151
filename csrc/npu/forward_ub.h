// SPDX-License-Identifier: Apache-2.0
// What the forward kernels need of UB, which decides how large their tiles are.
#pragma once

#include <cstdint>

#include "../../ascendc/abi/forward.h"

namespace npu_ce {

constexpr uint32_t kLanes = kCeLanes;
constexpr uint32_t kBlockBytes = 32;
constexpr uint32_t kFloat = 4;

inline uint64_t ceil_div(uint64_t n, uint64_t by) { return (n + by - 1) / by; }
inline uint64_t ceil_to(uint64_t n, uint64_t multiple) { return ceil_div(n, multiple) * multiple; }

// What the kernels of one problem need of UB. Each term names the class whose Init takes it.
class Ub {
 public:
  // `reduces`: the launch that finishes the rows may have to reduce them.
  Ub(const CeProblem& problem, const CeForwardOutputs& outputs, bool reduces)
      : problem_(problem),
        size_(problem.dtype == kCeFloat32 ? 4 : 2),
        smoothing_(problem.label_smoothing != 0),
        weights_(problem.weight != nullptr),
        entropy_(outputs.entropy != nullptr),
        argmax_(outputs.argmax != nullptr),
        log_prob_(outputs.log_prob != nullptr),
        lse_(outputs.lse != nullptr || problem.z_loss != 0),
        z_loss_(problem.z_loss != 0 || outputs.z_loss != nullptr),
        reduces_(reduces) {}

  uint64_t size() const { return size_; }
  // Of the reduction, at most: ce, count, weight, z-loss.
  uint64_t terms() const { return 2 + weights_ + z_loss_; }

  // Targets, States, RowFinish, RowSums, TargetWeights, Logits: vectors over the units of a group.
  uint64_t vectors(uint64_t group) const {
    const uint64_t length = ceil_to(group, kLanes), bits = ceil_to(length / 8, kBlockBytes);
    const uint64_t targets = 4 * length * kFloat + 3 * bits + 3 * kLanes * kFloat;
    const uint64_t states = (3 + 2 * smoothing_ + entropy_ + 2 * argmax_) * length * kFloat;
    const uint64_t finish = (5 + lse_ + z_loss_ + entropy_ + weights_ + 2 * argmax_) * length * kFloat + bits;
    const uint64_t table =
        problem_.classes <= kCeNarrowClasses ? ceil_to(problem_.classes, kLanes) * kFloat : length * kBlockBytes;
    const uint64_t weights = weights_ ? table + 2 * length * kFloat : 0;
    const uint64_t row_sums = reduces_ ? 4 * kLanes * kFloat + 6 * kBlockBytes : 0;
    return targets + states + finish + weights + row_sums + kBlockBytes;
  }

  // WideForward, UnitLanes, WideTile: all but what grows with the tile.
  uint64_t wide_fixed(uint64_t group) const {
    const uint64_t lanes = 2 + 2 * smoothing_ + entropy_ + 2 * argmax_;
    const uint64_t unit_lanes =
        group * ((lanes + 1) * kLanes * kFloat + kLanes / 8 + kBlockBytes) + 2 * kLanes * kFloat;
    return vectors(group) + unit_lanes + ceil_to(group, 8) * (kBlockBytes + kFloat) + 4 * kLanes * kFloat;
  }
  uint64_t wide_per_column(uint64_t input_tiles, bool log_prob) const {
    const bool separate = log_prob && size_ == 4;
    const uint64_t floats = size_ == 4 ? 0 : kFloat;
    const uint64_t work = separate ? kFloat : kFloat / 2;
    const uint64_t terms = smoothing_ || entropy_ || argmax_ ? kFloat : 0;
    const uint64_t columns = argmax_ ? kFloat + 1 : 0;
    const uint64_t weight_tiles = smoothing_ && weights_ ? 2 * kFloat : 0;
    return input_tiles * size_ + floats + work + terms + columns + weight_tiles;
  }
  // WideForward::InitTiles: whether the tiles, their floats and all else fit into thirds of the UB of their own.
  bool fits_apart(const CeForwardTiling& tiling, uint64_t ub_bytes) const {
    const uint64_t columns = tiling.tile_columns, tiles = tiling.input_tiles * columns * size_;
    const uint64_t floats = size_ == 4 ? 0 : columns * kFloat;
    const uint64_t all = columns * wide_per_column(tiling.input_tiles, tiling.kept_tiles > 0);
    return tiles <= (size_ == 4 ? 2 : 1) * kCeUbThird && floats <= kCeUbThird &&
           2 * kCeUbThird + all - tiles - floats + wide_fixed(tiling.group_units) <= ub_bytes;
  }
  // NarrowForward and RowTile: for each row of a tile, and more for each of a step.
  uint64_t narrow_of_tile(uint64_t pitch) const { return pitch * size_ * (2 + log_prob_); }
  uint64_t narrow_of_step(uint64_t pitch) const {
    const bool exponentials = log_prob_ || entropy_, terms = entropy_ || argmax_ || (smoothing_ && weights_);
    const uint64_t floats = (size_ == 4 ? 0 : 1) + exponentials + terms;
    return pitch * floats * kFloat + 3 * kFloat + (argmax_ ? kLanes / 8 : 0) + row_tile(pitch);
  }
  uint64_t narrow_fixed(uint64_t pitch, uint64_t group, uint64_t sum_rows) const {
    const uint64_t sums = terms() * ceil_to(group / sum_rows, kBlockBytes / kFloat) * kFloat;
    return vectors(group) + sums + (argmax_ ? pitch * kFloat : 0);
  }
  uint64_t merge_per_row(uint64_t pitch) const { return 3 * pitch * kFloat + kLanes / 8 + row_tile(pitch); }
  // LogProb.
  uint64_t log_prob_per_column() const { return 4 * size_ + (size_ == 4 ? 0 : kFloat); }

  // Event ids of V_MTE2, of which there are eight: of each input tile and weight tile, Targets and TargetWeights.
  uint64_t most_input_tiles() const { return kCeInputTiles - weights_ - (smoothing_ && weights_ ? 2 : 0); }

  bool log_prob() const { return log_prob_; }

 private:
  static uint64_t row_tile(uint64_t pitch) { return pitch <= kCeBlockPitch ? kBlockBytes : kLanes * kFloat; }

  const CeProblem& problem_;
  uint64_t size_;
  bool smoothing_, weights_, entropy_, argmax_, log_prob_, lse_, z_loss_, reduces_;
};

}  // namespace npu_ce
