// SPDX-License-Identifier: Apache-2.0
// Which library's kernels torch's dispatcher calls. The first library of a device registers with it. For a later one,
// that registration is pointed at its kernels by one store to memory: to remove a registration is not safe while other
// threads call it.
#pragma once

#include "abi.h"

namespace npu_ce {

// The kernels of the internal operators. Libraries of one version hand this struct to each other.
struct Kernels {
  const char* dispatch_key;
  BoxedKernel forward;
  BoxedKernel backward;
  BoxedKernel backward_in_place;
};

// This library's kernels: cpu/register.cpp and npu/register.cpp each define them.
extern const Kernels kKernels;

}  // namespace npu_ce
