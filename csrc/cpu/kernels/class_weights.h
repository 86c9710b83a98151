// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "columns.h"
#include "problem.h"

namespace npu_ce {

// The weights with their sums. Only label smoothing needs the sums, so without it the weights are not read here.
template <class A>
class ClassWeights {
 public:
  explicit ClassWeights(const Problem& problem) : weight_(static_cast<const A*>(problem.weight)) {
    if (weight_ == nullptr || problem.label_smoothing == 0) {
      total_ = static_cast<double>(problem.classes);
      return;
    }
    for_each_block(0, problem.classes, [this](int64_t column, int64_t count) {
      double sum = 0;
      for (int64_t i = column; i < column + count; ++i) sum += weight_[i];
      block_sums_.push_back(sum);
      total_ += sum;
    });
  }

  double at(int64_t target) const { return weight_ == nullptr ? 1.0 : static_cast<double>(weight_[target]); }
  const A* from(int64_t column) const { return weight_ == nullptr ? nullptr : weight_ + column; }
  double total() const { return total_; }
  double block_sum(int64_t column, int64_t count) const {
    return block_sums_.empty() ? static_cast<double>(count) : block_sums_[static_cast<size_t>(column / kBlockElems)];
  }

 private:
  const A* weight_;
  std::vector<double> block_sums_;
  double total_ = 0;
};

}  // namespace npu_ce
