// SPDX-License-Identifier: Apache-2.0
#include "instantiate.h"

namespace npu_ce {

template void forward_of<BFloat16>(const Problem&, const ForwardOutputs&, const Parallel&);
template void backward_of<BFloat16>(const Problem&, const Gradients&, const Parallel&);
template void forward_of<Float16>(const Problem&, const ForwardOutputs&, const Parallel&);
template void backward_of<Float16>(const Problem&, const Gradients&, const Parallel&);

}  // namespace npu_ce
