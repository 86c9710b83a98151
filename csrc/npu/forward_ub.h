// SPDX-License-Identifier: Apache-2.0
// What the forward kernels of one problem need of UB, which decides how large their tiles are.
#pragma once

#include <cstdint>

#include "../../ascendc/ub/forward.h"
#include "plan.h"

namespace npu_ce {

constexpr uint32_t kLanes = kCeLanes;
constexpr uint32_t kFloat = 4;

class Ub {
 public:
  // `reduces`: the launch that finishes the rows may have to reduce them.
  Ub(const CeProblem& problem, const CeForwardOutputs& outputs, bool reduces)
      : problem_(at_most(problem)),
        outputs_(outputs),
        options_(problem, outputs),
        size_(ElementBytes(problem.dtype)),
        reduces_(reduces) {
    CeProblem mean = problem;
    mean.reduction = kCeMean;
    mean.z_loss = problem.z_loss != 0 || outputs.z_loss != nullptr;
    terms_ = CountTerms(mean);
  }

  uint64_t size() const { return size_; }
  // The most terms that the reduction can have: ce, count, weight, z-loss.
  uint64_t terms() const { return terms_; }
  bool log_prob() const { return options_.log_prob; }

  // Bytes for the units of a group.
  uint64_t vectors(uint64_t group, uint64_t sum_rows = 1) const {
    const uint32_t length = CeilTo(group, kLanes);
    const FinishBytes finish(problem_, outputs_, length, sum_rows, terms_);
    const uint64_t weights = options_.weights ? TargetWeightBytes(problem_.classes, length).Sum() : 0;
    return TargetBytes(problem_.target_dtype, length).Sum(1) + StateBytes(options_, length) + finish.Sum() + weights +
           (reduces_ ? RowSumBytes::kSum : 0) + NumeratorBytes(problem_.softcap);
  }

  // Bytes of the wide layout that do not grow with the tile.
  uint64_t wide_fixed(uint64_t group) const {
    constexpr uint64_t kFree = 256;  // left unused: without it some rows would have other tiles, and so other bits
    return vectors(group) + UnitLaneBytes(options_, group).Sum() + wide(0, group, 0, false) + kFree;
  }
  uint64_t wide_per_column(uint64_t input_tiles, bool log_prob) const {
    const bool separate = log_prob && size_ == kFloat;
    return ceil_div(wide(kLanes, 0, input_tiles, separate) - wide(0, 0, input_tiles, separate), kLanes);
  }
  // Whether the tiles, their floats and all else can begin in a third of the UB each (WideFloats::InitBetween).
  bool fits_apart(const CeForwardTiling& tiling, uint64_t ub_bytes) const {
    const WideBytes bytes(options_, size_, tiling.tile_columns, tiling.group_units);
    const uint64_t tiles = uint64_t{tiling.input_tiles} * bytes.in;
    const uint64_t all = tiling.tile_columns * wide_per_column(tiling.input_tiles, tiling.kept_tiles > 0);
    return tiles <= (size_ == kFloat ? 2 : 1) * kCeUbThird && bytes.floats <= kCeUbThird &&
           2 * kCeUbThird + all - tiles - bytes.floats + wide_fixed(tiling.group_units) <= ub_bytes;
  }

  // Bytes of the narrow layout: for each row of a tile, in addition for each row of a step, and all else.
  uint64_t narrow_of_tile(uint64_t pitch) const { return narrow(pitch, 1, 0) - narrow(pitch, 0, 0); }
  uint64_t narrow_of_step(uint64_t pitch) const { return narrow(pitch, 0, 1) - narrow(pitch, 0, 0); }
  uint64_t narrow_fixed(uint64_t pitch, uint64_t group, uint64_t sum_rows) const {
    return vectors(group, sum_rows) + narrow(pitch, 0, 0);
  }

  uint64_t merge(uint64_t pitch, uint64_t rows) const {
    return vectors(rows) + MergeBytes(pitch, rows).Sum() + RowTileBytes(pitch, rows);
  }
  uint64_t log_prob_fixed() const { return NumeratorBytes(problem_.softcap); }
  uint64_t log_prob_per_column() const { return LogProbBytes(size_, kLanes).Sum() / kLanes; }

  // Limited by the event ids of V_MTE2: of these eight, each input tile and weight tile, Targets and TargetWeights take
  // one.
  uint64_t most_input_tiles() const {
    return kCeInputTiles - options_.weights - (options_.smoothing && options_.weights ? WideBytes::kAhead : 0);
  }

 private:
  // A row has the same tiles, and so the same bits, with any reduction, softcap and dtype of its target.
  static CeProblem at_most(CeProblem problem) {
    problem.reduction = kCeNone;
    problem.softcap = 1;
    problem.target_dtype = kCeInt64;
    return problem;
  }

  uint64_t wide(uint64_t columns, uint64_t group, uint64_t input_tiles, bool separate) const {
    return WideBytes(options_, size_, columns, group).Sum(input_tiles) +
           WideTileBytes(options_, columns, separate).Sum();
  }
  uint64_t narrow(uint64_t pitch, uint64_t tile_rows, uint64_t step_rows) const {
    return NarrowBytes(options_, size_, pitch, tile_rows, step_rows).Sum() + RowTileBytes(pitch, step_rows);
  }

  const CeProblem problem_;
  const CeForwardOutputs& outputs_;
  const ForwardOptions options_;
  const uint32_t size_;
  const bool reduces_;
  uint32_t terms_;
};

}  // namespace npu_ce
