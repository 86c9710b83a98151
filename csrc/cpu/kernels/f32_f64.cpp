// SPDX-License-Identifier: Apache-2.0
#include "instantiate.h"

namespace npu_ce {

template void forward_of<float>(const Problem&, const ForwardOutputs&, const Parallel&);
template void backward_of<float>(const Problem&, const Gradients&, const Parallel&);
template void forward_of<double>(const Problem&, const ForwardOutputs&, const Parallel&);
template void backward_of<double>(const Problem&, const Gradients&, const Parallel&);

}  // namespace npu_ce
