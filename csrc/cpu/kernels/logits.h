// SPDX-License-Identifier: Apache-2.0
// The logits as the formulas see them: x' = logit_scale * x, or softcap * tanh(logit_scale * x / softcap).
#pragma once

#include "columns.h"
#include "problem.h"
#include "vector_math.h"

namespace npu_ce {

template <class T>
class Logits {
 public:
  using A = Acc<T>;

  explicit Logits(const Problem& problem)
      : data_(static_cast<const T*>(problem.input)),
        stride_elems_(problem.layout.image_stride_elems),
        scale_(static_cast<A>(problem.logit_scale)),
        cap_(static_cast<A>(problem.softcap)),
        inner_scale_(problem.softcap != 0 ? static_cast<A>(problem.logit_scale / problem.softcap) : A(0)) {}

  const T* row(int64_t row) const { return data_ + row * stride_elems_; }
  bool rows_are_adjacent(int64_t classes) const { return stride_elems_ == classes; }
  bool capped() const { return cap_ != 0; }
  bool are_inputs() const { return scale_ == 1 && !capped(); }  // x' is x
  A scale() const { return scale_; }

  // Writes x' of a block to `values`, padded with zeros to whole vectors, and d x' / d x to `slopes` unless that is
  // null.
  NPU_CE_NOINLINE void stage(const T* from, int64_t count, A* values, A* slopes) const {
    constexpr int64_t lanes = kLanes<T>;
    const auto stage_vector = [&](int64_t column, Vec<T> x) __attribute__((always_inline)) {
      Vec<T> value = x * scale_;
      Vec<T> slope = splat(scale_);
      if (capped()) {
        const auto capped_value = tanh(x * inner_scale_);
        value = capped_value.value * cap_;
        slope *= capped_value.slope;
      }
      store(values + column, value);
      if (slopes != nullptr) store(slopes + column, slope);
    };
    int64_t column = 0;
    for (; column + lanes <= count; column += lanes) stage_vector(column, load(from + column));
    if (column < count) stage_vector(column, load_partial(from + column, count - column));
  }

  struct Element {
    A value;
    A slope;
  };

  // The same bits as in a block: a row's max must compare equal to the element it came from.
  Element element(const T* at) const {
    if (!capped()) return {to_acc(*at) * scale_, scale_};
    A value[kLanes<T>];
    A slope[kLanes<T>];
    stage(at, 1, value, slope);
    return {value[0], slope[0]};
  }

 private:
  const T* data_;
  int64_t stride_elems_;
  A scale_;
  A cap_;
  A inner_scale_;
};

}  // namespace npu_ce
