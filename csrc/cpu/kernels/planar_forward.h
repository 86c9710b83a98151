// SPDX-License-Identifier: Apache-2.0
// Forward of [N, C, L] logits with contiguous positions: each tile of positions is read once, a lane for each position,
// class by class. planar_backward.h is its counterpart.
#pragma once

#include <vector>

#include "class_weights.h"
#include "planar_tiles.h"
#include "scalars.h"

namespace npu_ce {

template <class T>
class PlanarForward {
 public:
  using A = Acc<T>;
  using V = Vec<T>;
  using Index = typename Numeric<A>::IndexVec;
  using Tile = typename PlanarTiles<T>::Tile;

  PlanarForward(const Problem& problem, const ForwardOutputs& out)
      : problem_(problem),
        out_(out),
        logits_(problem),
        weights_(problem),
        tiles_(problem, logits_),
        sums_(static_cast<size_t>(tiles_.count())) {}

  int64_t tiles() const { return tiles_.count(); }

  void run_tiles(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_tile(tiles_[i], sums_[static_cast<size_t>(i)]);
  }

  void reduce() {
    Sums all;
    for (const Sums& tile : sums_) {
      all.ce += tile.ce;
      all.z += tile.z;
      all.weight += tile.weight;
      all.valid += tile.valid;
    }
    A* denominators = static_cast<A*>(out_.denominators);
    denominators[0] = static_cast<A>(all.weight);
    denominators[1] = static_cast<A>(all.valid);
    if (problem_.reduction == Reduction::kNone) return;
    if (problem_.reduction == Reduction::kMean) {
      all.ce /= all.weight;
      all.z /= all.valid;
    }
    write_scalar(out_.loss, out_.loss_dtype, 0, all.ce + all.z);
    if (out_.z_loss != nullptr) write_scalar(out_.z_loss, out_.loss_dtype, 0, all.z);
  }

 private:
  struct Sums {
    double ce = 0;
    double z = 0;
    double weight = 0;  // of the targets
    double valid = 0;   // positions that are not ignored
  };

  // The state of a tile's positions: as RowState, an array for each member. The sum of exp(x' - max) is at_max + rest +
  // error: the max counts as exactly 1, as in sum_exp_beside_max, and `error` is what rounding has taken from `rest`,
  // which is added up over all classes in the accumulation dtype.
  struct State {
    alignas(kVectorBytes) A max[kTilePositions];
    alignas(kVectorBytes) A at_max[kTilePositions];
    alignas(kVectorBytes) A rest[kTilePositions];
    alignas(kVectorBytes) A error[kTilePositions];
    alignas(kVectorBytes) A sum_times_shift[kTilePositions];
    alignas(kVectorBytes) A reference[kTilePositions];  // the first block's max where that is finite, else 0
    alignas(kVectorBytes) A weighted[kTilePositions];   // sum of w * (x' - reference)
    alignas(kVectorBytes) A log_sum[kTilePositions];
    // These three are 0 where the target is ignored.
    alignas(kVectorBytes) A ce[kTilePositions];
    alignas(kVectorBytes) A z[kTilePositions];
    alignas(kVectorBytes) A target_weight[kTilePositions];
  };

  bool smoothing() const { return problem_.label_smoothing != 0; }

  void run_tile(const Tile& tile, Sums& sums) const {
    State state;
    tiles_.for_each_block(tile,
                          [&](auto* from, int64_t stride, int64_t first, int64_t classes, int64_t begin, int64_t end) {
                            scan(from, stride, first, classes, begin, end, state);
                            if (smoothing()) add_weighted(from, stride, first, classes, begin, end, state);
                          });
    TileTargets<T> targets;
    tiles_.read_targets(tile, weights_, targets);
    finish(tile, targets, state, sums);
    write_rows(tile, state);
    if (out_.argmax != nullptr) write_argmax(tile, state);
  }

  // Adds a block of classes. Each lane raises its max on the way.
  template <class S>
  NPU_CE_NOINLINE void scan(const S* from, int64_t stride, int64_t first, int64_t classes, int64_t begin, int64_t end,
                            State& state) const {
    const bool entropy = out_.entropy != nullptr;
    const V lowest = splat(static_cast<A>(kLowestExponent));
    for (int64_t at = begin; at < end; at += kLanes<T>, from += kLanes<T>) {
      V highest = first == 0 ? splat(std::numeric_limits<A>::lowest()) : load(state.max + at);
      const V before = highest;
      for (int64_t c = 0; c < classes; ++c) highest = max(load(from + c * stride), highest);
      V at_max{};
      V rest{};
      V error{};
      V sum_times_shift{};
      if (first != 0) {
        at_max = load(state.at_max + at);
        rest = load(state.rest + at);
        error = load(state.error + at);
        if (entropy) sum_times_shift = load(state.sum_times_shift + at);
        if (any_greater(highest, before)) {
          const V shift = before - highest;
          const V factor = exp(shift);
          const V sum = rest + at_max;
          if (entropy) sum_times_shift = factor * (sum_times_shift + sum * max(shift, lowest));
          rest = shift == 0 ? rest : sum * factor;
          at_max = shift == 0 ? at_max : V{};
          error *= factor;
        }
      }
      V sum{};
      for (int64_t c = 0; c < classes; ++c) {
        const V shift = load(from + c * stride) - highest;
        const V e = exp(shift);
        at_max += shift == 0 ? splat(A(1)) : V{};
        sum += shift == 0 ? V{} : e;
        if (entropy) sum_times_shift += e * max(shift, lowest);
      }
      const V total = rest + sum;
      const V added = total - rest;
      store(state.error + at, error + ((rest - (total - added)) + (sum - added)));
      store(state.max + at, highest);
      store(state.rest + at, total);
      store(state.at_max + at, at_max);
      if (entropy) store(state.sum_times_shift + at, sum_times_shift);
    }
  }

  template <class S>
  NPU_CE_NOINLINE void add_weighted(const S* from, int64_t stride, int64_t first, int64_t classes, int64_t begin,
                                    int64_t end, State& state) const {
    const A* weight = weights_.from(first);
    for (int64_t at = begin; at < end; at += kLanes<T>, from += kLanes<T>) {
      if (first == 0) {
        // Relative to a logit near the max, float loses no digits to an offset that all logits share.
        const V highest = load(state.max + at);
        const V lowest = splat(std::numeric_limits<A>::lowest());
        const V is_number = ((highest > lowest) & (highest < std::numeric_limits<A>::infinity())) ? highest : V{};
        store(state.reference + at, is_number);
        store(state.weighted + at, V{});
      }
      const V reference = load(state.reference + at);
      V sum{};
      for (int64_t c = 0; c < classes; ++c) {
        const V shift = load(from + c * stride) - reference;
        sum += weight == nullptr ? shift : shift * weight[c];
      }
      store(state.weighted + at, load(state.weighted + at) + sum);
    }
  }

  void finish(const Tile& tile, const TileTargets<T>& targets, State& state, Sums& sums) const {
    const A hard = static_cast<A>(problem_.label_smoothing - 1);
    const A smooth = static_cast<A>(problem_.label_smoothing / static_cast<double>(problem_.classes));
    const A weight_total = static_cast<A>(weights_.total());
    const V masked = splat(std::numeric_limits<A>::infinity());
    Index valid{};
    for (int64_t at = 0; at < tile.positions; at += kLanes<T>) {
      const V at_max = load(state.at_max + at);
      const V rest = load(state.rest + at);
      const auto is_masked = at_max + rest == 0;  // every logit is -inf
      const V row_max = is_masked ? -masked : load(state.max + at);
      const V log_sum = is_masked ? masked - masked : log_of_sum(at_max, rest, load(state.error + at));
      store(state.max + at, row_max);
      store(state.log_sum + at, log_sum);

      const Index counted = load_bits<Index>(targets.counted + at);
      const V weight = counted ? load(targets.weight + at) : V{};
      valid -= counted;
      V ce = ((load(targets.logit + at) - row_max) - log_sum) * (weight * hard);
      if (smoothing()) {
        const V log_sum_of_reference = (row_max - load(state.reference + at)) + log_sum;
        ce -= smooth * (load(state.weighted + at) - weight_total * log_sum_of_reference);
      }
      store(state.ce + at, counted ? ce : V{});
      store(state.target_weight + at, weight);
      if (problem_.z_loss == 0) continue;
      const V lse = row_max + log_sum;
      store(state.z + at, counted ? static_cast<A>(problem_.z_loss) * lse * lse : V{});
    }
    for (int lane = 0; lane < kLanes<T>; ++lane) sums.valid += static_cast<double>(valid[lane]);
    sums.ce = sum(state.ce, tile.positions);
    sums.weight = sum(state.target_weight, tile.positions);
    if (problem_.z_loss != 0) sums.z = sum(state.z, tile.positions);
  }

  // The sum of `count` values. The rest of the last vector has to be 0.
  static double sum(const A* values, int64_t count) {
    DoubleVec sums{};
    for (int64_t at = 0; at < count; at += kLanes<double>) sums += load_doubles(values + at);
    return sum_lanes(sums);
  }

  void write_rows(const Tile& tile, const State& state) const {
    const int64_t row = tile.first_row;
    const size_t bytes = static_cast<size_t>(tile.positions) * sizeof(A);
    A* stats = static_cast<A*>(out_.row_stats);
    std::memcpy(stats + row, state.max, bytes);
    std::memcpy(stats + problem_.rows + row, state.log_sum, bytes);
    for (int64_t i = 0; i < tile.positions && out_.lse != nullptr; ++i) {
      static_cast<A*>(out_.lse)[row + i] = state.max[i] + state.log_sum[i];
    }
    for (int64_t i = 0; i < tile.positions && out_.entropy != nullptr; ++i) {
      const A sum = state.at_max[i] + state.rest[i];
      static_cast<A*>(out_.entropy)[row + i] = state.log_sum[i] - state.sum_times_shift[i] / sum;
    }
    if (problem_.reduction != Reduction::kNone) return;
    for (int64_t i = 0; i < tile.positions; ++i) {
      const A z = problem_.z_loss == 0 ? A(0) : state.z[i];
      write_scalar(out_.loss, out_.loss_dtype, row + i, state.ce[i] + z);
      if (out_.z_loss != nullptr) write_scalar(out_.z_loss, out_.loss_dtype, row + i, z);
    }
  }

  // The first NaN, else the first class that has the max.
  NPU_CE_NOINLINE void write_argmax(const Tile& tile, const State& state) const {
    Index found[kTilePositions / kLanes<T>];
    Index nan[kTilePositions / kLanes<T>];
    for (Index& none : found) none = Index{} - 1;
    for (Index& none : nan) none = Index{} - 1;
    tiles_.for_each_block(tile,
                          [&](auto* from, int64_t stride, int64_t first, int64_t classes, int64_t begin, int64_t end) {
                            for (int64_t at = begin; at < end; at += kLanes<T>, from += kLanes<T>) {
                              const V highest = load(state.max + at);
                              Index& own_found = found[at / kLanes<T>];
                              Index& own_nan = nan[at / kLanes<T>];
                              for (int64_t c = 0; c < classes; ++c) {
                                const V x = load(from + c * stride);
                                const Index column = Index{} + static_cast<decltype(Index{}[0] + 0)>(first + c);
                                own_found = ((own_found < 0) & (x == highest)) ? column : own_found;
                                own_nan = ((own_nan < 0) & (x != x)) ? column : own_nan;
                              }
                            }
                          });
    for (int64_t i = 0; i < tile.positions; ++i) {
      const int64_t at_nan = nan[i / kLanes<T>][i % kLanes<T>];
      out_.argmax[tile.first_row + i] = at_nan >= 0 ? at_nan : found[i / kLanes<T>][i % kLanes<T>];
    }
  }

  const Problem& problem_;
  const ForwardOutputs& out_;
  Logits<T> logits_;
  ClassWeights<A> weights_;
  PlanarTiles<T> tiles_;
  std::vector<Sums> sums_;
};

}  // namespace npu_ce
