// SPDX-License-Identifier: Apache-2.0
#include "rates.h"

namespace virtual_cann {

namespace {

using End = double Rate::*;

// The table, with the rates for which moves(rate) holds at this end of their range.
template <class Moves>
Rates with(End end, Moves&& moves) {
  Rates rates{};
  for (size_t i = 0; i < kRateCount; ++i) rates[i] = kRates[i].*(moves(kRates[i]) ? end : &Rate::value);
  return rates;
}

std::vector<Assumption> make_assumptions() {
  const auto all = [](const Rate&) { return true; };
  std::vector<Assumption> made = {
      {"table", with(&Rate::value, all)}, {"fast", with(&Rate::fast, all)}, {"slow", with(&Rate::slow, all)}};
  for (const Rate& range : kRates) {
    if (range.moves_with != nullptr) continue;
    const std::string name = range.name;
    const auto in_range = [&](const Rate& rate) {
      return rate.name == name || (rate.moves_with != nullptr && rate.moves_with == name);
    };
    if (range.fast != range.value) made.push_back({name + " fast", with(&Rate::fast, in_range)});
    if (range.slow != range.value) made.push_back({name + " slow", with(&Rate::slow, in_range)});
  }
  return made;
}

}  // namespace

const std::vector<Assumption>& assumptions() {
  static const std::vector<Assumption> made = make_assumptions();
  return made;
}

}  // namespace virtual_cann
