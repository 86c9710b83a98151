// SPDX-License-Identifier: Apache-2.0
// What forward keeps in UB.
#pragma once

#include "../abi/forward.h"
#include "common.h"

namespace npu_ce {

// The state of a unit after its last tile. An enum in a struct is scoped, and an index without a cast.
struct State {
  enum Index : uint32_t {
    kMax,       // of x', but never -inf, so that x' - max is defined for a masked logit
    kSum,       // of exp(x' - max): 0 says that every logit was -inf
    kTarget,    // x' of the target; 0 in a span without it
    kWeighted,  // sum of w * (x' - max): relative to the max, float32 loses no digits to an offset of all logits
    kWeights,   // sum of w
    kEntropy,   // sum of exp(x' - max) * (x' - max)
    kArgmax,    // the first column that has the max; kNoColumn if none has
    kFirstNan,  // the first column with a NaN, or kNoColumn
    kStates,
  };
};

// The running state while a unit's tiles stream by: 64 lanes of each kind.
struct UnitLane {
  enum Index : uint32_t { kSum, kMax, kWeighted, kWeights, kEntropy, kArgmax, kFirstNan, kKinds };
};

// The terms that the reduction adds up over the rows. The workspace has a vector of each that the problem needs,
// in this order.
struct SumTerm {
  enum Index : uint32_t { kCe, kZ, kWeight, kCount, kTerms };
};

// Vectors over a group's rows that are written, or reduced.
struct FinishVector {
  enum Index : uint32_t {
    kMax,
    kLogSum,  // right after the max, as in row_stats
    kLse,
    kEntropy,
    kArgmax,  // int64
    kArgmaxHigh,
    kTerms,  // the vectors of SumTerm
    kLoss = kTerms + SumTerm::kCe,
    kZLoss = kTerms + SumTerm::kZ,
    kWeight = kTerms + SumTerm::kWeight,
    kCount = kTerms + SumTerm::kCount,
    kVectors,
  };
};

struct ForwardOptions {
  NPU_CE_SHARED ForwardOptions() = default;
  NPU_CE_SHARED ForwardOptions(const CeProblem& problem, const CeForwardOutputs& outputs)
      : smoothing(problem.label_smoothing != 0),
        weights(problem.weight != nullptr),
        entropy(outputs.entropy != nullptr),
        argmax(outputs.argmax != nullptr),
        log_prob(outputs.log_prob != nullptr) {}

  NPU_CE_SHARED bool HasState(uint32_t state) const {
    return state <= State::kTarget || (state <= State::kWeights && smoothing) ||
           (state == State::kEntropy && entropy) || (state >= State::kArgmax && argmax);
  }
  NPU_CE_SHARED bool HasLanes(uint32_t lanes) const {
    return lanes <= UnitLane::kMax || (lanes <= UnitLane::kWeights && smoothing) ||
           (lanes == UnitLane::kEntropy && entropy) || (lanes >= UnitLane::kArgmax && argmax);
  }

  bool smoothing, weights, entropy, argmax, log_prob;
};

// Without weights both denominators are the same number, so kCount serves for both.
NPU_CE_SHARED bool HasTerm(const CeProblem& problem, uint32_t term) {
  const bool numerators = problem.reduction != kCeNone;
  return (term == SumTerm::kCe && numerators) || (term == SumTerm::kZ && numerators && problem.z_loss != 0) ||
         (term == SumTerm::kWeight && problem.weight != nullptr) || term == SumTerm::kCount;
}

NPU_CE_SHARED uint32_t CountTerms(const CeProblem& problem) {
  uint32_t terms = 0;
  for (uint32_t term = 0; term < SumTerm::kTerms; ++term) {
    terms += HasTerm(problem, term) ? 1 : 0;
  }
  return terms;
}

NPU_CE_SHARED bool HasFinishVector(const CeProblem& problem, const CeForwardOutputs& outputs, uint32_t vector) {
  const bool z_loss = problem.z_loss != 0;
  switch (vector) {
    case FinishVector::kLse:
      return z_loss || outputs.lse != nullptr;
    case FinishVector::kEntropy:
      return outputs.entropy != nullptr;
    case FinishVector::kArgmax:
    case FinishVector::kArgmaxHigh:
      return outputs.argmax != nullptr;
    case FinishVector::kZLoss:
      return z_loss || (problem.reduction == kCeNone && outputs.z_loss != nullptr);
    case FinishVector::kWeight:
      return problem.weight != nullptr;
    default:
      return true;
  }
}

// States, of `capacity` units.
NPU_CE_SHARED uint32_t StateBytes(const ForwardOptions& options, uint32_t capacity) {
  uint32_t states = 0;
  for (uint32_t state = 0; state < State::kStates; ++state) {
    states += options.HasState(state) ? 1 : 0;
  }
  return LaneBytes(states * capacity);
}

// RowFinish, of `capacity` rows. For the reduction, `terms` vectors are summed over `sum_rows` rows each; where that is
// 1, the vectors serve as they are.
struct FinishBytes {
  NPU_CE_SHARED FinishBytes(const CeProblem& problem, const CeForwardOutputs& outputs, uint32_t capacity,
                            uint32_t sum_rows, uint32_t terms)
      : scratch(LaneBytes(capacity)), bits(BitBytes(capacity)) {
    uint32_t vectors = 0;
    for (uint32_t vector = 0; vector < FinishVector::kVectors; ++vector) {
      vectors += HasFinishVector(problem, outputs, vector) ? 1 : 0;
    }
    const uint32_t sums = sum_rows > 1 ? terms * SumsPitch(capacity, sum_rows) : 0;
    out = LaneBytes(vectors * capacity + sums);
  }
  NPU_CE_SHARED static uint32_t SumsPitch(uint32_t capacity, uint32_t sum_rows) {
    return CeilTo(capacity / sum_rows, kBlockFloats);
  }
  NPU_CE_SHARED uint32_t Sum() const { return out + scratch + bits; }

  uint32_t out, scratch, bits;
};

// RowSums.
struct RowSumBytes {
  static constexpr uint32_t lanes = SumTerm::kTerms * kCeLanes * sizeof(float);
  static constexpr uint32_t sums = SumTerm::kTerms * kBlockBytes;
  static constexpr uint32_t out = 2 * kBlockBytes;
  static constexpr uint32_t kSum = lanes + sums + out;
};

// TargetWeights, of `capacity` rows: all weights where they are few, else a block for each row's.
struct TargetWeightBytes {
  NPU_CE_SHARED TargetWeightBytes(uint32_t classes, uint32_t capacity)
      : table(classes <= kCeNarrowClasses ? LaneBytes(CeilTo(classes, kCeLanes)) : BlocksBytes(capacity)),
        offsets(LaneBytes(capacity)),
        result(LaneBytes(capacity)) {}
  NPU_CE_SHARED uint32_t Sum() const { return table + offsets + result; }

  uint32_t table, offsets, result;
};

// RowTile: a chunk for each of `capacity` rows.
NPU_CE_SHARED uint32_t RowTileBytes(uint32_t pitch, uint32_t capacity) {
  return LaneBytes(capacity * (pitch <= kCeBlockPitch ? kBlockFloats : kCeLanes));
}

// UnitLanes, of `capacity` units.
struct UnitLaneBytes {
  NPU_CE_SHARED UnitLaneBytes(const ForwardOptions& options, uint32_t capacity)
      : scratch(LaneBytes((capacity + 1) * kCeLanes)), bits(capacity * kCeLanes / 8), spread(BlocksBytes(capacity)) {
    uint32_t kinds = 0;
    for (uint32_t kind = 0; kind < UnitLane::kKinds; ++kind) {
      kinds += options.HasLanes(kind) ? 1 : 0;
    }
    lanes = LaneBytes(capacity * kinds * kCeLanes);
  }
  NPU_CE_SHARED uint32_t Sum() const { return lanes + scratch + bits + spread; }

  uint32_t lanes;
  uint32_t scratch;  // one kind of lanes of all units; in Read, 64 lanes, and a block behind them for each number
  uint32_t bits, spread;
};

// WideTile, of `columns`. `separate`: exp(x' - max) gets a buffer of its own. Else that buffer is for folds only, which
// need half of the tile and up to two repeats more.
struct WideTileBytes {
  NPU_CE_SHARED WideTileBytes(const ForwardOptions& options, uint32_t columns, bool separate)
      : work(LaneBytes(separate ? columns : columns / 2 + 2 * kCeLanes)),
        terms(options.smoothing || options.entropy || options.argmax ? LaneBytes(columns) : 0),
        lanes(LaneBytes(2 * kCeLanes)),
        bits(options.argmax ? columns / 8 : 0),
        index(options.argmax ? LaneBytes(columns) : 0) {}
  NPU_CE_SHARED uint32_t Sum() const { return work + terms + lanes + bits + index; }

  uint32_t work, terms, lanes, bits, index;
};

// WideForward and WideFloats: tiles of `columns`, groups of `group` units.
struct WideBytes {
  static constexpr uint32_t kAhead = 2;  // tiles that are being fetched, each with its weights

  NPU_CE_SHARED WideBytes(const ForwardOptions& options, uint32_t element_bytes, uint32_t columns, uint32_t group)
      : in(columns * element_bytes),
        floats(element_bytes == sizeof(float) ? 0 : LaneBytes(columns)),
        weight_tiles(options.smoothing && options.weights ? LaneBytes(columns) : 0),
        target_block(BlocksBytes(group)),
        target_offset(LaneBytes(group)) {}
  NPU_CE_SHARED uint32_t Sum(uint32_t input_tiles) const {
    return input_tiles * in + floats + kAhead * weight_tiles + target_block + target_offset;
  }

  uint32_t in;  // of each of the input's buffers
  uint32_t floats;
  uint32_t weight_tiles;  // of each of kAhead buffers
  uint32_t target_block, target_offset;
};

// NarrowForward: tiles of `tile_rows`, of which `step_rows` are worked on at a time.
struct NarrowBytes {
  static constexpr uint32_t kInputTiles = 2;

  NPU_CE_SHARED NarrowBytes(const ForwardOptions& options, uint32_t element_bytes, uint32_t pitch, uint32_t tile_rows,
                            uint32_t step_rows)
      : in(tile_rows * pitch * element_bytes), out(options.log_prob ? in : 0), row(LaneBytes(step_rows)) {
    const uint32_t step = LaneBytes(step_rows * pitch);
    floats = element_bytes == sizeof(float) ? 0 : step;
    exponentials = options.log_prob || options.entropy ? step : 0;
    terms = options.entropy || options.argmax || (options.smoothing && options.weights) ? step : 0;
    index = options.argmax ? LaneBytes(pitch) : 0;
    bits = options.argmax ? step_rows * kCeLanes / 8 : 0;
  }
  NPU_CE_SHARED uint32_t Sum() const {
    return kInputTiles * in + out + 3 * row + floats + exponentials + terms + index + bits;
  }

  uint32_t in;  // of each of the input's buffers
  uint32_t out;
  uint32_t row;  // each vector over the rows of a step: offsets of the rows, offsets of their targets, log_sums
  uint32_t floats, exponentials, terms, index, bits;
};

// Merge: tiles of `rows`.
struct MergeBytes {
  NPU_CE_SHARED MergeBytes(uint32_t pitch, uint32_t rows)
      : in(LaneBytes(rows * pitch)), shift(in), terms(in), bits(rows * kCeLanes / 8) {}
  NPU_CE_SHARED uint32_t Sum() const { return in + shift + terms + bits; }

  uint32_t in, shift, terms, bits;
};

// LogProb: tiles of `columns`.
struct LogProbBytes {
  static constexpr uint32_t kBuffers = 2;  // in each direction

  NPU_CE_SHARED LogProbBytes(uint32_t element_bytes, uint32_t columns)
      : in(columns * element_bytes), out(in), floats(element_bytes == sizeof(float) ? 0 : LaneBytes(columns)) {}
  NPU_CE_SHARED uint32_t Sum() const { return kBuffers * (in + out) + floats; }

  uint32_t in, out, floats;
};

}  // namespace npu_ce
