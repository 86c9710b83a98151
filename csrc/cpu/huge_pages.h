// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace npu_ce {

// Asks for huge pages behind a large output that has just been allocated: the first write to each 4 KiB page of fresh
// memory costs several times the write itself.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace npu_ce

// The largest output that asks for them, in MiB; 0 turns them off. Called by ctypes, once the library is loaded.
extern "C" __attribute__((visibility("default"))) void npu_ce_jit_set_huge_pages(int most_mib);
