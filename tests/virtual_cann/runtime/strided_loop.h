// SPDX-License-Identifier: Apache-2.0
// The loop of every operator: over all indices of a shape, with a pointer into each operand.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tensors.h"

namespace virtual_cann {

using Sizes = std::vector<int64_t>;

struct Operand {
  uint8_t* first;
  std::vector<int64_t> byte_strides;  // for each dimension of the loop; 0 where the operand is broadcast
};

// The shape to which both broadcast, if there is one.
Sizes broadcast(const Sizes& left, const Sizes& right);

// The tensor as an operand of a loop over `sizes`, broadcast if needed; throws Error if it does not fit.
Operand spread(const aclTensor& tensor, const Sizes& sizes);

template <size_t count, class Body>
void strided_loop(const Sizes& sizes, const std::array<Operand, count>& operands, Body&& body) {
  for (int64_t size : sizes) {
    if (size == 0) return;
  }
  std::array<uint8_t*, count> at;
  for (size_t i = 0; i < count; ++i) at[i] = operands[i].first;
  if (sizes.empty()) return body(at);

  const size_t inner = sizes.size() - 1;
  std::vector<int64_t> index(sizes.size(), 0);
  auto move = [&](size_t dim, int64_t steps) {
    for (size_t i = 0; i < count; ++i) at[i] += operands[i].byte_strides[dim] * steps;
  };
  std::array<int64_t, count> step;
  for (size_t i = 0; i < count; ++i) step[i] = operands[i].byte_strides[inner];
  while (true) {
    std::array<uint8_t*, count> next = at;
    for (int64_t i = 0; i < sizes[inner]; ++i) {
      body(next);
      for (size_t j = 0; j < count; ++j) next[j] += step[j];
    }
    size_t dim = inner;
    do {
      if (dim == 0) return;
      --dim;
      move(dim, 1);
      if (++index[dim] < sizes[dim]) break;
      move(dim, -sizes[dim]);
      index[dim] = 0;
    } while (true);
  }
}

}  // namespace virtual_cann
