// SPDX-License-Identifier: Apache-2.0
// The parts of an aclnn operator. It has two C functions: aclnnXGetWorkspaceSize makes a plan, aclnnX puts the plan on
// a stream. ACLNN_OPERATOR defines both.
//
// An operator without a definition here is missing from the library. torch_npu then reports its name, or falls back to
// aclopCompileAndExecute, which refuses it by name.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "elements.h"
#include "strided_loop.h"

namespace virtual_cann {

struct Plan {
  std::vector<aclTensor> tensors;  // all that it touches, checked before it runs
  std::function<void()> run;
  bool synchronous = false;  // aclnnX returns only after it has run
};

}  // namespace virtual_cann

struct aclOpExecutor {
  std::string name;
  virtual_cann::Plan plan;
};

namespace virtual_cann {

// The executor is the caller's from then on; enqueue_operator deletes it.
void give_executor(const char* name, Plan plan, uint64_t* workspace_bytes, aclOpExecutor** executor);
void enqueue_operator(aclOpExecutor* executor, aclrtStream stream);

#define ACLNN_UNPACK(...) __VA_ARGS__
#define ACLNN_OPERATOR(name, parameters, ...)                                                                 \
  extern "C" int aclnn##name##GetWorkspaceSize(ACLNN_UNPACK parameters, uint64_t* workspace_bytes,            \
                                               aclOpExecutor** executor) {                                    \
    return api("aclnn" #name, [&] { give_executor("aclnn" #name, __VA_ARGS__, workspace_bytes, executor); }); \
  }                                                                                                           \
  extern "C" int aclnn##name(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) {                  \
    return api("aclnn" #name, [&] { enqueue_operator(executor, stream); });                                   \
  }

// Calls visit with a value of the type to compute in: double if any dtype is double, else float if any is floating,
// else int64.
template <class Visitor>
void with_compute_type(const std::vector<aclDataType>& dtypes, Visitor&& visit) {
  bool floating = false;
  for (aclDataType dtype : dtypes) {
    if (dtype == ACL_DOUBLE) return visit(double());
    floating |= is_floating(dtype);
  }
  if (floating) return visit(float());
  visit(int64_t());
}

// to[i] = f(from[i]...), each `from` broadcast to the shape of `to`. f takes and returns any of the compute types.
template <class Function, class... Tensors>
Plan elementwise(Function f, const aclTensor* to, const Tensors*... from) {
  Plan plan{{*to, *from...}, {}};
  plan.run = [f, to = *to, from = std::make_tuple(*from...)] {
    std::apply(
        [&](const auto&... from) {
          with_compute_type({to.dtype, from.dtype...}, [&](auto example) {
            using T = decltype(example);
            const Storer<T> store = storer<T>(to.dtype);
            const std::array<Loader<T>, sizeof...(from)> load{loader<T>(from.dtype)...};
            std::array<Operand, 1 + sizeof...(from)> operands{spread(to, to.sizes), spread(from, to.sizes)...};
            strided_loop(to.sizes, operands, [&](const auto& at) {
              if constexpr (sizeof...(from) == 0) store(at[0], f(T()));
              if constexpr (sizeof...(from) == 1) store(at[0], f(load[0](at[1])));
              if constexpr (sizeof...(from) == 2) store(at[0], f(load[0](at[1]), load[1](at[2])));
              if constexpr (sizeof...(from) == 3) store(at[0], f(load[0](at[1]), load[1](at[2]), load[2](at[3])));
            });
          });
        },
        from);
  };
  return plan;
}

}  // namespace virtual_cann
