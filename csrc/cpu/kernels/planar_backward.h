// SPDX-License-Identifier: Apache-2.0
// Backward of [N, C, L] logits with contiguous positions: the coefficients of a tile's positions, then one read of its
// logits and one write of their gradient, class by class. planar_forward.h is its counterpart.
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
  using Tile = typename PlanarTiles<T>::Tile;

  PlanarBackward(const Problem& problem, const Gradients& gradients)
      : problem_(problem),
        gradients_(gradients),
        logits_(problem),
        weights_(problem),
        tiles_(problem, logits_),
        loss_flows_(present(gradients.loss) || present(gradients.z_loss)),
        output_flows_(present(gradients.lse) || present(gradients.entropy)) {
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
  // The values of a tile's positions, an array for each kind.
  struct Numbers {
    TileTargets<T> targets;
    alignas(kVectorBytes) A max[kTilePositions];
    alignas(kVectorBytes) A log_sum[kTilePositions];
    alignas(kVectorBytes) A of_loss[kTilePositions];  // the outputs' gradients
    alignas(kVectorBytes) A of_z_loss[kTilePositions];
    alignas(kVectorBytes) A of_lse[kTilePositions];
    alignas(kVectorBytes) A of_entropy[kTilePositions];
    alignas(kVectorBytes) A entropy_value[kTilePositions];
    alignas(kVectorBytes) A spread[kTilePositions];  // these three as in RowGradient
    alignas(kVectorBytes) A entropy[kTilePositions];
    alignas(kVectorBytes) A smooth[kTilePositions];
    alignas(kVectorBytes) A factor[kTilePositions];  // as factor_of_exp
    T at_target[kTilePositions];
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
    // An ignored position has target 0: its class 0 is written a second time.
    tiles_.for_each_position(tile, [&](int64_t i) __attribute__((always_inline)) {
      to[numbers.targets.target[i] * to_stride + i] = numbers.at_target[i];
    });
  }

  void read_rows(const Tile& tile, Numbers& numbers) const {
    const A* stats = static_cast<const A*>(gradients_.row_stats) + tile.first_row;
    const size_t bytes = static_cast<size_t>(tile.positions) * sizeof(A);
    std::memcpy(numbers.max, stats, bytes);
    std::memcpy(numbers.log_sum, stats + problem_.rows, bytes);
    read(gradients_.loss, tile, numbers.of_loss);
    read(gradients_.z_loss, tile, numbers.of_z_loss);
    read(gradients_.lse, tile, numbers.of_lse);
    read(gradients_.entropy, tile, numbers.of_entropy);
    read(gradients_.entropy_value, tile, numbers.entropy_value);
    tiles_.read_targets(tile, weights_, numbers.targets);
  }

  static void read(const RowValues& values, const Tile& tile, A* to) {
    if (values.stride_elems == 0) {
      const V value = splat(static_cast<A>(value_at(values, 0)));
      for (int64_t at = 0; at < tile.positions; at += kLanes<T>) store(to + at, value);
    } else {
      for (int64_t i = 0; i < tile.positions; ++i) to[i] = static_cast<A>(value_at(values, tile.first_row + i));
    }
  }

  // The positions into which a gradient flows. The others get exact zeros, whatever their logits hold.
  NPU_CE_INLINE Index flows(const Numbers& numbers, int64_t at) const {
    const Index loss_flows = load_bits<Index>(numbers.targets.counted + at) & (Index{} - loss_flows_);
    if (!output_flows_) return loss_flows;
    return loss_flows | (load(numbers.of_lse + at) != 0) | (load(numbers.of_entropy + at) != 0);
  }

  // The formula is in docs/design.md. Returns whether all factors are finite, so that write_plain may be used.
  bool combine(const Tile& tile, Numbers& numbers) const {
    const A of_loss = static_cast<A>(of_loss_);
    const A of_z_loss = static_cast<A>(of_z_loss_ * 2 * problem_.z_loss);
    const A hard = static_cast<A>(1 - problem_.label_smoothing);
    const A soft = static_cast<A>(problem_.label_smoothing / static_cast<double>(problem_.classes));
    const A weight_total = static_cast<A>(weights_.total());
    const V lowest = splat(static_cast<A>(kLowestExponent));
    const bool smoothing = problem_.label_smoothing != 0;
    const bool rest_flows = smoothing || problem_.z_loss != 0 || output_flows_;
    V not_finite{};
    for (int64_t at = 0; at < tile.positions; at += kLanes<T>) {
      const V row_max = load(numbers.max + at);
      const V log_sum = load(numbers.log_sum + at);
      const Index counted = load_bits<Index>(numbers.targets.counted + at);
      const V target_weight = load(numbers.targets.weight + at);
      const V g = counted ? load(numbers.of_loss + at) * of_loss : V{};
      const V target_grad = g * hard * target_weight;
      const V log_prob = (load(numbers.targets.logit + at) - row_max) - log_sum;
      V at_target = target_grad * expm1(log_prob);
      // A term that is off is left out, not multiplied by 0: g may be infinite, and p may be NaN.
      V smooth{};
      V entropy{};
      V spread = target_grad;
      if (rest_flows) {
        V rest = load(numbers.of_lse + at);
        if (smoothing) {
          smooth = g * soft;
          rest += smooth * weight_total;
        }
        if (problem_.z_loss != 0) {
          const V gz = (load(numbers.of_loss + at) + load(numbers.of_z_loss + at)) * of_z_loss;
          rest += counted ? gz * (row_max + log_sum) : V{};
        }
        if (present(gradients_.entropy)) {
          entropy = -load(numbers.of_entropy + at);
          rest += entropy * load(numbers.entropy_value + at);
        }
        const V of_p = fma(entropy, max(log_prob, lowest), rest);
        at_target += (of_p != 0 ? exp(log_prob) * of_p : V{}) - smooth * target_weight;
        spread += rest;
      }
      const Index flows = this->flows(numbers, at);
      const V factor = flows ? spread * logits_.scale() * exp(-log_sum) : V{};
      not_finite += factor * A(0);
      store(numbers.at_target + at, flows ? at_target * load(numbers.targets.slope + at) : V{});
      store(numbers.spread + at, spread);
      store(numbers.entropy + at, entropy);
      store(numbers.smooth + at, smooth);
      store(numbers.factor + at, factor);
    }
    return sum_lanes(not_finite) == 0;
  }

  // p * spread - smooth * w: the whole formula where there is neither softcap nor a gradient of entropy.
  NPU_CE_NOINLINE void write_plain(const T* from, int64_t stride, T* to, int64_t to_stride, int64_t first,
                                   int64_t classes, int64_t begin, int64_t end, const Numbers& numbers) const {
    const V scale = splat(logits_.scale());
    const A* weight = weights_.from(first);
    for (int64_t at = begin; at < end; at += kLanes<T>, from += kLanes<T>, to += kLanes<T>) {
      const TimesExp<T> times_exp(load(numbers.factor + at));
      const V lowered = -load(numbers.max + at);
      const V smooth = load(numbers.smooth + at) * -logits_.scale();
      const Index flows = this->flows(numbers, at);
      for (int64_t c = 0; c < classes; ++c) {
        const V shift = fma(load(from + c * stride), scale, lowered);
        const V gradient = times_exp(shift, weight == nullptr ? smooth : smooth * weight[c]);
        store(to + c * to_stride, flows ? gradient : V{});
      }
    }
  }

  // The whole formula. `values` and `slopes` begin at the tile's first position.
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
      const Index flows = this->flows(numbers, at);
      for (int64_t c = 0; c < classes; ++c) {
        const int64_t i = c * kTilePositions + at;
        const V log_prob = (load(values + i) - row_max) - log_sum;
        const V factor = fma(entropy, max(log_prob, lowest), spread);
        const V gradient = fma(times_exp(log_prob, V{}), factor, weight == nullptr ? smooth : smooth * weight[c]);
        store(to + c * to_stride, flows ? gradient * load(slopes + i) : V{});
      }
    }
  }

  // A vector of unit_of_factors (row_gradient.h).
  NPU_CE_INLINE static V unit_of(V spread, V entropy) {
    return max(spread, -spread) + max(entropy, -entropy) < A(0x1p-30) ? splat(A(1)) : splat(A(0x1p64));
  }

  const Problem& problem_;
  const Gradients& gradients_;
  Logits<T> logits_;
  ClassWeights<A> weights_;
  PlanarTiles<T> tiles_;
  bool loss_flows_;
  bool output_flows_;
  double of_loss_ = 1;  // d returned loss / d row's loss: 1, or 1 / denominators[0] for mean
  double of_z_loss_ = 1;
};

}  // namespace npu_ce
