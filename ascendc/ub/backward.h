// SPDX-License-Identifier: Apache-2.0
// What backward keeps in UB per row. The bytes of its buffers are in CeBackwardBuffers, which the plan fills.
#pragma once

#include "../abi/backward.h"
#include "common.h"

namespace npu_ce {

// What a launch has to do, from what it was handed: the same for every row and tile.
struct BackwardOptions {
  bool loss;      // a gradient of the loss or of z_loss flows into the rows that are not ignored
  bool smooth;    // with label smoothing, a part of the loss's gradient flows into every class,
  bool weighted;  // in proportion to the class weights
  bool rest;      // p has a factor beside t: r or b of docs/design.md
  bool entropy;
  bool log_prob;
  bool capped;
  bool others;     // a gradient of lse, entropy or log_prob flows, into ignored rows too
  bool zero_rows;  // rows into which nothing flows are zeros: ignored ones whose gradients of lse and entropy are 0
  bool nothing;    // nothing flows at all

  // exp(x' - max) is exp(q) * exp(cap - max) with the q of Logits, and the second factor goes into the row's
  // coefficients. It is at most exp(2 cap): with this bound, gradients of up to 10^10 stay in float32's range.
  bool folds_max;
  static constexpr float kMostFoldedCap = 32;

  NPU_CE_SHARED BackwardOptions() = default;
  NPU_CE_SHARED BackwardOptions(const CeProblem& problem, const CeGradients& gradients) {
    loss = gradients.loss.data != nullptr || gradients.z_loss.data != nullptr;
    smooth = gradients.loss.data != nullptr && problem.label_smoothing != 0;
    weighted = smooth && problem.weight != nullptr;
    entropy = gradients.entropy.data != nullptr;
    log_prob = gradients.log_prob != nullptr;
    capped = problem.softcap != 0;
    others = entropy || log_prob || gradients.lse.data != nullptr;
    zero_rows = !log_prob;
    nothing = !others && !loss;
    folds_max = capped && problem.softcap <= kMostFoldedCap && !entropy;
    rest = others || smooth || (loss && problem.z_loss != 0);
  }
};

// What is read per row beside the target. An enum in a struct is scoped, and an index without a cast.
struct RowInput {
  enum Index : uint32_t {
    kMax,
    kLogSum,
    kLossGradient,
    kZLossGradient,
    kLseGradient,
    kEntropyGradient,
    kEntropy,
    kLogProbSum,
    kInputs,
  };
};

NPU_CE_SHARED bool IsPerRow(const CeRowVector& vector) { return vector.data != nullptr && vector.stride != 0; }

// Whether an input has a vector in UB, and not one number for all rows. `log_prob_sums`: an earlier launch made them.
NPU_CE_SHARED bool HasRowInput(const CeGradients& gradients, bool log_prob_sums, uint32_t input) {
  switch (input) {
    case RowInput::kLossGradient:
      return IsPerRow(gradients.loss);
    case RowInput::kZLossGradient:
      return IsPerRow(gradients.z_loss);
    case RowInput::kLseGradient:
      return IsPerRow(gradients.lse);
    case RowInput::kEntropyGradient:
      return IsPerRow(gradients.entropy);
    case RowInput::kEntropy:
      return gradients.entropy.data != nullptr;
    case RowInput::kLogProbSum:
      return log_prob_sums;
    default:
      return true;
  }
}

NPU_CE_SHARED uint32_t CountRowInputs(const CeGradients& gradients, bool log_prob_sums) {
  uint32_t inputs = 0;
  for (uint32_t input = 0; input < RowInput::kInputs; ++input) {
    inputs += HasRowInput(gradients, log_prob_sums, input) ? 1 : 0;
  }
  return inputs;
}

// For inputs that are one number for all rows: a block for each as it is read, and one as float32.
constexpr uint32_t kSingleBytes = 2 * RowInput::kInputs * kBlockBytes;

// The elements that are fetched one by one for each row, where a tile is a piece of one row.
struct RowElement {
  enum Index : uint32_t { kLogit, kLogProb, kWeight, kKinds };
};

// A block for each element, and for a half dtype, behind them, room for the blocks of one kind as float32.
NPU_CE_SHARED uint32_t RowElementBytes(uint32_t element_bytes, uint32_t rows) {
  return BlocksBytes((RowElement::kKinds + (element_bytes == 2 ? 2 : 0)) * rows);
}

// The working vectors over the rows of a group.
struct RowVector {
  enum Index : uint32_t {
    kLogit,
    kClassWeight,
    kClassLogProb,
    kLogProbSum,
    kOffset,
    kSpread,
    kSlope,
    kSmooth,
    kAtTarget,
    kRest,
    kTargetSlope,
    kTerm,
    kMore,
    kVectors,
  };
};

NPU_CE_SHARED bool HasRowVector(const CeProblem& problem, const BackwardOptions& options, uint32_t vector) {
  switch (vector) {
    case RowVector::kClassWeight:
      return problem.weight != nullptr;
    case RowVector::kClassLogProb:
    case RowVector::kLogProbSum:
      return options.log_prob;
    case RowVector::kSlope:
      return options.entropy;
    case RowVector::kSmooth:
      return options.smooth;
    case RowVector::kRest:
      return options.rest;
    case RowVector::kTargetSlope:
      return options.capped;
    default:
      return true;
  }
}

NPU_CE_SHARED uint32_t CountRowVectors(const CeProblem& problem, const BackwardOptions& options) {
  uint32_t vectors = 0;
  for (uint32_t vector = 0; vector < RowVector::kVectors; ++vector) {
    vectors += HasRowVector(problem, options, vector) ? 1 : 0;
  }
  return vectors;
}

}  // namespace npu_ce
