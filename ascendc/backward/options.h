// SPDX-License-Identifier: Apache-2.0
// What a backward launch has to do, from what it was handed: the same for every row and tile.
#pragma once

#include "../abi/backward.h"
#include "../common/tile_io.h"

namespace npu_ce {

struct BackwardOptions {
  bool loss;      // a gradient of the loss or of z_loss flows into the rows that are not ignored,
  bool smooth;    // a part of it into every class,
  bool weighted;  // by the classes' weights
  bool rest;      // p has a factor beside the target's: docs/design.md's r, or b
  bool entropy;
  bool log_prob;
  bool others;     // a gradient of lse, entropy or log_prob flows, into ignored rows too
  bool zero_rows;  // rows into which nothing flows are zeros: ignored ones whose gradients of lse and entropy are 0
  bool nothing;    // nothing flows at all

  // exp(x' - max) is exp(q) * exp(cap - max) with the q of Logits, and the second factor goes into the row's numbers.
  // It is at most exp(2 cap): with this bound, gradients of up to 10^10 have room.
  bool folds_max;
  static constexpr float kMostFoldedCap = 32;

  __aicore__ inline void Init(const CeProblem& problem, const CeGradients& gradients) {
    loss = gradients.loss.data != nullptr || gradients.z_loss.data != nullptr;
    smooth = gradients.loss.data != nullptr && problem.label_smoothing != 0;
    weighted = smooth && problem.weight != nullptr;
    entropy = gradients.entropy.data != nullptr;
    log_prob = gradients.log_prob != nullptr;
    others = entropy || log_prob || gradients.lse.data != nullptr;
    zero_rows = !log_prob;
    nothing = !others && !loss;
    folds_max = problem.softcap != 0 && problem.softcap <= kMostFoldedCap && !entropy;
    rest = others || smooth || (loss && problem.z_loss != 0);
  }
};

}  // namespace npu_ce
