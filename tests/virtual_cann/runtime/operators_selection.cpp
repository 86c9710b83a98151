// SPDX-License-Identifier: Apache-2.0
// Operators that choose elements along a dimension: by index, or by size.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "operators.h"

namespace virtual_cann {
namespace {

size_t axis_of(const aclTensor& tensor, int64_t dim) {
  return static_cast<size_t>(dim < 0 ? dim + static_cast<int64_t>(tensor.sizes.size()) : dim);
}

// The first element of each line along the axis, with the shape `sizes`.
aclTensor line_starts(aclTensor tensor, size_t axis, const Sizes& sizes) {
  tensor.sizes = sizes;
  tensor.strides.at(axis) = 0;
  return tensor;
}

int64_t checked(int64_t number, int64_t count) {
  if (number < 0 || number >= count)
    throw Error(ACL_ERROR_INVALID_PARAM,
                "index " + std::to_string(number) + " is out of bounds for " + std::to_string(count));
  return number;
}

Plan gather(const aclTensor* self, int64_t dim, const aclTensor* index, const aclTensor* to) {
  return {{*self, *index, *to}, [self = *self, axis = axis_of(*self, dim), index = *index, to = *to] {
            const int64_t bytes = item_bytes(self.dtype), count = self.sizes[axis], step = self.strides[axis] * bytes;
            const Loader<int64_t> number = loader<int64_t>(index.dtype);
            const aclTensor starts = line_starts(self, axis, to.sizes);
            const std::array<Operand, 3> operands{spread(to, to.sizes), spread(starts, to.sizes),
                                                  spread(index, to.sizes)};
            strided_loop(to.sizes, operands, [&](const auto& at) {
              std::memcpy(at[0], at[1] + checked(number(at[2]), count) * step, static_cast<size_t>(bytes));
            });
          }};
}

Plan scatter_add(const aclTensor* self, int64_t dim, const aclTensor* index, const aclTensor* from,
                 const aclTensor* to) {
  const Plan copy = elementwise([](auto value) { return value; }, to, self);
  const auto add = [axis = axis_of(*self, dim), index = *index, from = *from, to = *to] {
    const int64_t count = to.sizes[axis], step = to.strides[axis] * item_bytes(to.dtype);
    const Loader<int64_t> number = loader<int64_t>(index.dtype);
    const aclTensor starts = line_starts(to, axis, index.sizes);
    with_compute_type({to.dtype}, [&](auto example) {
      using T = decltype(example);
      const Loader<T> load = loader<T>(to.dtype), load_from = loader<T>(from.dtype);
      const Storer<T> store = storer<T>(to.dtype);
      const std::array<Operand, 3> operands{spread(starts, index.sizes), spread(index, index.sizes),
                                            spread(from, index.sizes)};
      strided_loop(index.sizes, operands, [&](const auto& at) {
        auto* place = at[0] + checked(number(at[1]), count) * step;
        store(place, load(place) + load_from(at[2]));
      });
    });
  };
  return {{*self, *index, *from, *to}, [copy, add] {
            copy.run();
            add();
          }};
}

// Sorted, whether that was requested or not. A NaN is the largest; among equals, the first comes first.
Plan top_k(const aclTensor* self, int64_t k, int64_t dim, bool largest, const aclTensor* values,
           const aclTensor* numbers) {
  return {{*self, *values, *numbers},
          [self = *self, k, axis = axis_of(*self, dim), largest, values = *values, numbers = *numbers] {
            Sizes lines = self.sizes;
            lines[axis] = 1;
            const int64_t count = self.sizes[axis], bytes = item_bytes(self.dtype);
            const Loader<double> load = loader<double>(self.dtype);
            const Storer<int64_t> store = storer<int64_t>(numbers.dtype);
            const std::array<Operand, 3> operands{spread(line_starts(self, axis, lines), lines),
                                                  spread(line_starts(values, axis, lines), lines),
                                                  spread(line_starts(numbers, axis, lines), lines)};
            strided_loop(lines, operands, [&](const auto& at) {
              const auto element = [&](int64_t n) { return at[0] + n * self.strides[axis] * bytes; };
              std::vector<int64_t> order(static_cast<size_t>(count));
              std::iota(order.begin(), order.end(), int64_t(0));
              std::stable_sort(order.begin(), order.end(), [&](int64_t left, int64_t right) {
                const double a = load(element(left)), b = load(element(right));
                const bool more = std::isnan(a) ? !std::isnan(b) : a > b, less = std::isnan(b) ? !std::isnan(a) : a < b;
                return largest ? more : less;
              });
              for (int64_t n = 0; n < k; ++n) {
                const int64_t chosen = order[static_cast<size_t>(n)];
                std::memcpy(at[1] + n * values.strides[axis] * bytes, element(chosen), static_cast<size_t>(bytes));
                store(at[2] + n * numbers.strides[axis] * item_bytes(numbers.dtype), chosen);
              }
            });
          }};
}

}  // namespace

using Tensor = const aclTensor*;

ACLNN_OPERATOR(Gather, (Tensor self, int64_t dim, Tensor index, Tensor to), gather(self, dim, index, to))
ACLNN_OPERATOR(ScatterAdd, (Tensor self, int64_t dim, Tensor index, Tensor from, Tensor to),
               scatter_add(self, dim, index, from, to))
ACLNN_OPERATOR(Topk, (Tensor self, int64_t k, int64_t dim, bool largest, bool, Tensor values, Tensor numbers),
               top_k(self, k, dim, largest, values, numbers))
ACLNN_OPERATOR(TopkV2,
               (Tensor self, int64_t k, int64_t dim, bool largest, bool, int64_t, Tensor values, Tensor numbers),
               top_k(self, k, dim, largest, values, numbers))

}  // namespace virtual_cann
