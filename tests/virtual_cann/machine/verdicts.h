// SPDX-License-Identifier: Apache-2.0
// The violations of one launch: an entry, with a count, for each rule and place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "order.h"

namespace virtual_cann {

class Verdicts {
 public:
  void add(Rule rule, const Instruction& instruction, uint32_t core, std::string expected, std::string got) {
    const auto key = std::make_tuple(rule, std::string(instruction.place.file), instruction.place.line);
    const auto [found, is_new] = entries_.emplace(key, violations_.size());
    if (is_new) {
      violations_.push_back({rule, instruction.api, instruction.place.file, instruction.place.line, core,
                             std::move(expected), std::move(got), 0});
    }
    ++violations_[found->second].times;
  }

  std::vector<Violation> take() { return std::move(violations_); }

 private:
  std::map<std::tuple<Rule, std::string, int>, size_t> entries_;
  std::vector<Violation> violations_;
};

}  // namespace virtual_cann
