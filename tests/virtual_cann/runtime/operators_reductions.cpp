// SPDX-License-Identifier: Apache-2.0
// Reductions over dimensions.
#include <cmath>

#include "operators.h"

namespace virtual_cann {
namespace {

// Dense strides for `sizes`, 0 in the summed dimensions.
std::vector<int64_t> dense_strides(const Sizes& sizes, const std::vector<bool>& summed, int64_t item) {
  std::vector<int64_t> strides(sizes.size(), 0);
  for (size_t dim = sizes.size(); dim-- > 0;) {
    if (summed[dim]) continue;
    strides[dim] = item;
    item *= sizes[dim];
  }
  return strides;
}

// In aclnn, no dimensions means all.
std::vector<bool> marked(const aclIntArray& dims, size_t count) {
  std::vector<bool> marks(count, dims.values.empty());
  for (int64_t dim : dims.values)
    marks.at(static_cast<size_t>(dim < 0 ? dim + static_cast<int64_t>(count) : dim)) = true;
  return marks;
}

// Adds in double, or in int64, and rounds once. `to` may be dense or strided, with the summed dimensions kept or not:
// in order of its indices, its elements are the remaining ones of self.
Plan sum(const aclTensor* self, const aclIntArray* dims, const aclTensor* to, bool mean) {
  return {{*self, *to}, [self = *self, summed = marked(*dims, self->sizes.size()), to = *to, mean] {
            with_compute_type({self.dtype, to.dtype}, [&](auto example) {
              using Narrow = decltype(example);
              using T = std::conditional_t<std::is_integral_v<Narrow>, int64_t, double>;
              std::vector<T> sums(static_cast<size_t>(to.count()), T(0));
              if (sums.empty()) return;
              const Loader<T> load = loader<T>(self.dtype);
              Operand results{reinterpret_cast<uint8_t*>(sums.data()), dense_strides(self.sizes, summed, sizeof(T))};
              strided_loop(self.sizes, std::array<Operand, 2>{spread(self, self.sizes), results},
                           [&](const auto& at) { *reinterpret_cast<T*>(at[1]) += load(at[0]); });
              const T divisor = mean ? T(self.count()) / T(to.count()) : T(1);
              const Storer<T> store = storer<T>(to.dtype);
              const T* next = sums.data();
              strided_loop(to.sizes, std::array<Operand, 1>{spread(to, to.sizes)}, [&](const auto& at) {
                store(at[0], mean ? *next / divisor : *next);
                ++next;
              });
            });
          }};
}

// Over all elements. A NaN wins.
template <class Better>
Plan extreme(Better better, const aclTensor* self, const aclTensor* to) {
  if (self->count() == 0) throw Error(ACL_ERROR_INVALID_PARAM, "an empty tensor has no maximum and no minimum");
  return {{*self, *to}, [better, self = *self, to = *to] {
            with_compute_type({self.dtype}, [&](auto example) {
              using T = decltype(example);
              const Loader<T> load = loader<T>(self.dtype);
              T best = load(self.first);
              strided_loop(self.sizes, std::array<Operand, 1>{spread(self, self.sizes)}, [&](const auto& at) {
                T value = load(at[0]);
                if (std::isnan(double(value)) || better(value, best)) best = value;
              });
              storer<T>(to.dtype)(to.first, best);
            });
          }};
}

Plan equal(const aclTensor* self, const aclTensor* other, const aclTensor* to) {
  return {{*self, *other, *to}, [self = *self, other = *other, to = *to] {
            bool all = self.sizes == other.sizes;
            with_compute_type({self.dtype, other.dtype}, [&](auto example) {
              using T = decltype(example);
              if (!all) return;
              const Loader<T> left = loader<T>(self.dtype), right = loader<T>(other.dtype);
              strided_loop(self.sizes, std::array<Operand, 2>{spread(self, self.sizes), spread(other, self.sizes)},
                           [&](const auto& at) { all = all && left(at[0]) == right(at[1]); });
            });
            storer<int64_t>(to.dtype)(to.first, all);
          }};
}

}  // namespace

using Tensor = const aclTensor*;
using Ints = const aclIntArray*;

ACLNN_OPERATOR(ReduceSum, (Tensor self, Ints dims, bool, aclDataType, Tensor to), sum(self, dims, to, false))
ACLNN_OPERATOR(Mean, (Tensor self, Ints dims, bool, aclDataType, Tensor to), sum(self, dims, to, true))
ACLNN_OPERATOR(Equal, (Tensor self, Tensor other, Tensor to), equal(self, other, to))
ACLNN_OPERATOR(Max, (Tensor self, Tensor to), extreme([](auto a, auto b) { return a > b; }, self, to))
ACLNN_OPERATOR(Min, (Tensor self, Tensor to), extreme([](auto a, auto b) { return a < b; }, self, to))

}  // namespace virtual_cann
