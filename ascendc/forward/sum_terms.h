// SPDX-License-Identifier: Apache-2.0
// What the reduction adds up over the rows: the workspace has a vector of each that the problem has, in this order.
#pragma once

#include "../common/tile_io.h"

namespace npu_ce {

struct SumTerm {
  enum Index : uint32_t { kCe, kZ, kWeight, kCount, kTerms };
};

// Without weights, the denominators are one.
__aicore__ inline bool HasTerm(const CeProblem& problem, uint32_t term) {
  const bool numerators = problem.reduction != kCeNone;
  return (term == SumTerm::kCe && numerators) || (term == SumTerm::kZ && numerators && problem.z_loss != 0) ||
         (term == SumTerm::kWeight && problem.weight != nullptr) || term == SumTerm::kCount;
}

__aicore__ inline uint32_t CountTerms(const CeProblem& problem) {
  uint32_t terms = 0;
  for (uint32_t term = 0; term < SumTerm::kTerms; ++term) {
    terms += HasTerm(problem, term) ? 1 : 0;
  }
  return terms;
}

// Vectors' length: a sum of every `sum_rows` rows, the last of what is left.
__aicore__ inline uint64_t SumsOf(const CeProblem& problem, const CeForwardPlan& plan) {
  return (problem.rows + plan.sum_rows - 1) / plan.sum_rows;
}

}  // namespace npu_ce
