// SPDX-License-Identifier: Apache-2.0
// Which library's kernels torch's dispatcher calls. The first library of a device registers with it. One that is loaded
// later takes its place behind that registration, with one store to memory: to take a registration away is not safe
// while other threads call it.
#pragma once

#include "abi.h"

namespace npu_ce {

// Those of the internal operators. Libraries of one version hand these to each other.
struct Kernels {
  const char* dispatch_key;
  BoxedKernel forward;
  BoxedKernel backward;
  BoxedKernel backward_in_place;
};

// Of this library. Each of the two that are made of this has its own.
extern const Kernels kKernels;

}  // namespace npu_ce
