// SPDX-License-Identifier: Apache-2.0
// Backward of [N, C, L] logits whose positions lie side by side: the numbers of a tile's positions, then one read of
// its logits and one write of their gradient, class by class. planar_forward.h is its counterpart.
#pragma once

#include "class_weights.h"
#include "planar_tiles.h"
#include "row_gradient.h"
#include "scalars.h"

namespace npu_ce {

template <class T>
class PlanarBackward {
 public:
  using A = Acc<T>;
  using V = Vec<T>;
  using Index = typename Numeric<A>::IndexVec;

  PlanarBackward(const Problem& problem, const Gradients& gradients)
      : problem_(problem),
        gradients_(gradients),
        logits_(problem),
        weights_(problem),
        tiles_(problem, logits_),
        loss_flows_(present(gradients.loss) || present(gradients.z_loss)) {
    if (problem.reduction != Reduction::kMean) return;
    const A* denominators = static_cast<const A*>(gradients.denominators);
    of_loss_ = 1 / static_cast<double>(denominators[0]);
    of_z_loss_ = 1 / static_cast<double>(denominators[1]);
  }

  int64_t tiles() const { return tiles_.count(); }

  void run_tiles(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) run_tile(tiles_[i]);
  }

 private:
  using Tile = typename PlanarTiles<T>::Tile;

  // What a tile's positions have, an array for each number. All but `max` and `log_sum` are 0 where nothing flows, and
  // all that belongs to the loss where it does not.
  struct Numbers {
    alignas(kVectorBytes) A max[kTilePositions];
    alignas(kVectorBytes) A log_sum[kTilePositions];
    alignas(kVectorBytes) A flows[kTilePositions];
    alignas(kVectorBytes) A loss_flows[kTilePositions];
    alignas(kVectorBytes) A of_loss[kTilePositions];  // the outputs' gradients
    alignas(kVectorBytes) A of_z_loss[kTilePositions];
    alignas(kVectorBytes) A of_lse[kTilePositions];
    alignas(kVectorBytes) A of_entropy[kTilePositions];
    alignas(kVectorBytes) A entropy_value[kTilePositions];
    alignas(kVectorBytes) A target_weight[kTilePositions];
    alignas(kVectorBytes) A logit[kTilePositions];   // x' of the target
    alignas(kVectorBytes) A slope[kTilePositions];   // d x' / d x there
    alignas(kVectorBytes) A spread[kTilePositions];  // these three as in RowGradient
    alignas(kVectorBytes) A entropy[kTilePositions];
    alignas(kVectorBytes) A smooth[kTilePositions];
    alignas(kVectorBytes) A factor[kTilePositions];  // as factor_of_exp
    T at_target[kTilePositions];
    int64_t target[kTilePositions];  // -1 where the loss does not flow
  };

  void run_tile(const Tile& tile) const {
    Numbers numbers;
    read_rows(tile, numbers);
    const bool finite = combine(tile, numbers);
    const bool plain = finite && !logits_.capped() && !present(gradients_.entropy);
    const int64_t stride = problem_.layout.class_stride_elems;
    const int64_t to_stride = problem_.layout.positions;
    const int64_t whole = tile.positions / kLanes<T> * kLanes<T>;
    T* const to = static_cast<T*>(gradients_.input) + tile.image * problem_.classes * to_stride + tile.position;
    for (int64_t first = 0; first < problem_.classes; first += kBlockClasses) {
      const int64_t classes = std::min(kBlockClasses, problem_.classes - first);
      const T* from = tile.logits + first * stride;
      T* block_to = to + first * to_stride;
      T rest_to[kBlockClasses * kLanes<T>];
      if (plain) {
        write_plain(from, stride, block_to, to_stride, first, classes, 0, whole, numbers);
        if (whole < tile.positions) {
          T rest[kBlockClasses * kLanes<T>] = {};
          tiles_.copy_rest(from + whole, stride, rest, kLanes<T>, classes, tile.positions - whole);
          write_plain(rest, kLanes<T>, rest_to, kLanes<T>, first, classes, whole, tile.positions, numbers);
        }
      } else {
        alignas(kVectorBytes) A values[kBlockClasses * kTilePositions];
        alignas(kVectorBytes) A slopes[kBlockClasses * kTilePositions];
        for (int64_t c = 0; c < classes; ++c) {
          const int64_t at = c * kTilePositions;
          logits_.stage(from + c * stride, tile.positions, values + at, slopes + at);
        }
        write_full(values, slopes, block_to, to_stride, first, classes, 0, whole, numbers);
        write_full(values, slopes, rest_to, kLanes<T>, first, classes, whole, tile.positions, numbers);
      }
      tiles_.copy_rest(rest_to, kLanes<T>, block_to + whole, to_stride, classes, tile.positions - whole);
    }
    for (int64_t i = 0; i < tile.positions; ++i) {
      if (numbers.target[i] >= 0) to[numbers.target[i] * to_stride + i] = numbers.at_target[i];
    }
  }

  void read_rows(const Tile& tile, Numbers& numbers) const {
    const int64_t stride = problem_.layout.class_stride_elems;
    const A* stats = static_cast<const A*>(gradients_.row_stats) + tile.first_row;
    const size_t bytes = static_cast<size_t>(tile.positions) * sizeof(A);
    std::memcpy(numbers.max, stats, bytes);
    std::memcpy(numbers.log_sum, stats + problem_.rows, bytes);
    fill(gradients_.loss, tile, numbers.of_loss);
    fill(gradients_.z_loss, tile, numbers.of_z_loss);
    fill(gradients_.lse, tile, numbers.of_lse);
    fill(gradients_.entropy, tile, numbers.of_entropy);
    fill(gradients_.entropy_value, tile, numbers.entropy_value);
    int64_t i = 0;
    for (; i < tile.positions; ++i) {
      const int64_t target = problem_.target[tile.first_row + i];
      const bool loss_flows = loss_flows_ && target != problem_.ignore_index;
      numbers.target[i] = loss_flows ? target : -1;
      numbers.loss_flows[i] = loss_flows ? A(1) : A(0);
      numbers.flows[i] = loss_flows || numbers.of_lse[i] != 0 || numbers.of_entropy[i] != 0 ? A(1) : A(0);
      numbers.target_weight[i] = loss_flows ? static_cast<A>(weights_.at(target)) : A(0);
      if (!loss_flows) continue;
      const auto element = logits_.element(tile.logits + target * stride + i);
      numbers.logit[i] = element.value;
      numbers.slope[i] = element.slope;
    }
    for (; i % kLanes<T> != 0; ++i) numbers.flows[i] = numbers.loss_flows[i] = 0;
  }

  static void fill(const RowValues& values, const Tile& tile, A* to) {
    if (values.stride_elems == 0) {
      std::fill(to, to + tile.positions, static_cast<A>(value_at(values, 0)));
    } else {
      for (int64_t i = 0; i < tile.positions; ++i) to[i] = static_cast<A>(value_at(values, tile.first_row + i));
    }
  }

  // docs/design.md has the formula. Whether write_plain may multiply with the factors: they are finite.
  bool combine(const Tile& tile, Numbers& numbers) const {
    const A of_loss = static_cast<A>(of_loss_);
    const A of_z_loss = static_cast<A>(of_z_loss_ * 2 * problem_.z_loss);
    const A hard = static_cast<A>(1 - problem_.label_smoothing);
    const A soft = static_cast<A>(problem_.label_smoothing / static_cast<double>(problem_.classes));
    const A weight_total = static_cast<A>(weights_.total());
    const V lowest = splat(static_cast<A>(kLowestExponent));
    V not_finite{};
    for (int64_t at = 0; at < tile.positions; at += kLanes<T>) {
      const V row_max = load(numbers.max + at);
      const V log_sum = load(numbers.log_sum + at);
      const auto flows = load(numbers.flows + at) != 0;
      const auto loss_flows = load(numbers.loss_flows + at) != 0;
      const V target_weight = load(numbers.target_weight + at);
      const V g = loss_flows ? load(numbers.of_loss + at) * of_loss : V{};
      const V target_grad = g * hard * target_weight;
      V smooth{};  // not multiplied where it is off: g may be infinite
      V rest = load(numbers.of_lse + at);
      if (problem_.label_smoothing != 0) {
        smooth = g * soft;
        rest += smooth * weight_total;
      }
      if (problem_.z_loss != 0) {
        const V gz = (load(numbers.of_loss + at) + load(numbers.of_z_loss + at)) * of_z_loss;
        rest += loss_flows ? gz * (row_max + log_sum) : V{};
      }
      V entropy{};
      if (present(gradients_.entropy)) {
        entropy = -load(numbers.of_entropy + at);
        rest += entropy * load(numbers.entropy_value + at);
      }
      const V spread = target_grad + rest;
      const V factor = flows ? spread * logits_.scale() * exp(-log_sum) : V{};
      not_finite += factor * A(0);

      const V log_prob = (load(numbers.logit + at) - row_max) - log_sum;
      const V of_p = fma(entropy, max(log_prob, lowest), rest);
      V at_target = fma(target_grad, expm1(log_prob), -smooth * target_weight);
      // Left out where it is 0, as p may be NaN.
      at_target += of_p != 0 ? exp(log_prob) * of_p : V{};
      store(numbers.at_target + at, at_target * load(numbers.slope + at));
      store(numbers.spread + at, spread);
      store(numbers.entropy + at, entropy);
      store(numbers.smooth + at, smooth);
      store(numbers.factor + at, factor);
    }
    return sum_lanes(not_finite) == 0;
  }

  // p * spread - smooth * w: all there is without softcap and the gradient of entropy.
  NPU_CE_NOINLINE void write_plain(const T* from, int64_t stride, T* to, int64_t to_stride, int64_t first,
                                   int64_t classes, int64_t begin, int64_t end, const Numbers& numbers) const {
    const V scale = splat(logits_.scale());
    const A* weight = weights_.from(first);
    for (int64_t at = begin; at < end; at += kLanes<T>, from += kLanes<T>, to += kLanes<T>) {
      const TimesExp<T> times_exp(load(numbers.factor + at));
      const V lowered = -load(numbers.max + at);
      const V smooth = load(numbers.smooth + at) * -logits_.scale();
      const auto flows = load(numbers.flows + at) != 0;
      for (int64_t c = 0; c < classes; ++c) {
        const V shift = fma(load(from + c * stride), scale, lowered);
        const V gradient = times_exp(shift, weight == nullptr ? smooth : smooth * weight[c]);
        store(to + c * to_stride, flows ? gradient : V{});
      }
    }
  }

  // The whole formula. `values` and `slopes` begin where the tile does.
  NPU_CE_NOINLINE void write_full(const A* values, const A* slopes, T* to, int64_t to_stride, int64_t first,
                                  int64_t classes, int64_t begin, int64_t end, const Numbers& numbers) const {
    const V lowest = splat(static_cast<A>(kLowestExponent));
    const A* weight = weights_.from(first);
    for (int64_t at = begin; at < end; at += kLanes<T>, to += kLanes<T>) {
      const V row_max = load(numbers.max + at);
      const V log_sum = load(numbers.log_sum + at);
      const V unit = unit_of(load(numbers.spread + at), load(numbers.entropy + at));
      const TimesExp<T> times_exp(unit);
      const V spread = load(numbers.spread + at) / unit;
      const V entropy = load(numbers.entropy + at) / unit;
      const V smooth = -load(numbers.smooth + at);
      const auto flows = load(numbers.flows + at) != 0;
      for (int64_t c = 0; c < classes; ++c) {
        const int64_t i = c * kTilePositions + at;
        const V log_prob = (load(values + i) - row_max) - log_sum;
        const V factor = fma(entropy, max(log_prob, lowest), spread);
        const V gradient = fma(times_exp(log_prob, V{}), factor, weight == nullptr ? smooth : smooth * weight[c]);
        store(to + c * to_stride, flows ? gradient * load(slopes + i) : V{});
      }
    }
  }

  // As unit_of_factors.
  NPU_CE_INLINE static V unit_of(V spread, V entropy) {
    return max(spread, -spread) + max(entropy, -entropy) < A(0x1p-30) ? splat(A(1)) : splat(A(0x1p64));
  }

  const Problem& problem_;
  const Gradients& gradients_;
  Logits<T> logits_;
  ClassWeights<A> weights_;
  PlanarTiles<T> tiles_;
  bool loss_flows_;
  double of_loss_ = 1;  // the part of a row's own loss in the one that is returned
  double of_z_loss_ = 1;
};

}  // namespace npu_ce
