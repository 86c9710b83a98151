// SPDX-License-Identifier: Apache-2.0
// GetBlockIdx and GetBlockNum, the kernel's type, SyncAll, and the scalar unit's data cache.
#pragma once

#include "tensor.h"

enum KernelMetaType { KERNEL_TYPE_AIV_ONLY, KERNEL_TYPE_MIX_AIV_1_0 };

#define KERNEL_TASK_TYPE_DEFAULT(value)                                                         \
  ::virtual_cann::Core::current().set_kernel_type((value) == KERNEL_TYPE_AIV_ONLY               \
                                                      ? ::virtual_cann::KernelType::vector_only \
                                                      : ::virtual_cann::KernelType::mix_vector)

namespace AscendC {

inline int64_t GetBlockIdx() { return virtual_cann::Core::current().index(); }
inline int64_t GetBlockNum() { return virtual_cann::Core::current().blocks(); }
inline int64_t GetSubBlockIdx() { return 0; }  // vector cores only, each with a block of its own

template <bool isAIVOnly = true>
void SyncAll(Place place = Place::here()) {
  static_assert(isAIVOnly, "the virtual CANN has vector cores only");
  auto& core = virtual_cann::Core::current();
  core.issue(virtual_cann::Pipe::S, "SyncAll", place);
  core.sync_all();
}

template <typename T, CacheLine entireType, DcciDst dcciDst = DcciDst::CACHELINE_ALL>
void DataCacheCleanAndInvalid(const GlobalTensor<T>& dst, Place place = Place::here()) {
  static_assert(dcciDst == DcciDst::CACHELINE_ALL || dcciDst == DcciDst::CACHELINE_OUT, "GM only");
  auto& core = virtual_cann::Core::current();
  core.issue(virtual_cann::Pipe::S, "DataCacheCleanAndInvalid", place);
  core.clean_and_invalidate(dst.pointer(), entireType == CacheLine::ENTIRE_DATA_CACHE);
}

}  // namespace AscendC
