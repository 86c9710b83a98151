// SPDX-License-Identifier: Apache-2.0
#include "by_dtype.h"

namespace npu_ce {

void forward(const Problem& problem, const ForwardOutputs& outputs, const Parallel& parallel) {
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return forward_of<float>(problem, outputs, parallel);
    case Dtype::kFloat64:
      return forward_of<double>(problem, outputs, parallel);
    case Dtype::kBFloat16:
      return forward_of<BFloat16>(problem, outputs, parallel);
    case Dtype::kFloat16:
      return forward_of<Float16>(problem, outputs, parallel);
  }
}

void backward(const Problem& problem, const Gradients& gradients, const Parallel& parallel) {
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return backward_of<float>(problem, gradients, parallel);
    case Dtype::kFloat64:
      return backward_of<double>(problem, gradients, parallel);
    case Dtype::kBFloat16:
      return backward_of<BFloat16>(problem, gradients, parallel);
    case Dtype::kFloat16:
      return backward_of<Float16>(problem, gradients, parallel);
  }
}

}  // namespace npu_ce
