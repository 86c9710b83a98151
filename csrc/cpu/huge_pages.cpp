// SPDX-License-Identifier: Apache-2.0
#include "huge_pages.h"

#include <atomic>
#include <cstdint>
#include <limits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace npu_ce {
namespace {

constexpr int64_t kHugePageBytes = int64_t(2) << 20;
constexpr int64_t kAdviseBytes = 2 * kHugePageBytes;

std::atomic<int64_t> most_bytes{std::numeric_limits<int64_t>::max()};

}  // namespace

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  if (bytes < kAdviseBytes || bytes > most_bytes.load(std::memory_order_relaxed)) return;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const auto mask = static_cast<uintptr_t>(kHugePageBytes - 1);
  const uintptr_t first = (begin + mask) & ~mask;
  const uintptr_t last = (begin + static_cast<uintptr_t>(bytes)) & ~mask;
  // A kernel without huge pages refuses; the memory is then as good as before.
  if (last > first) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace npu_ce

void npu_ce_jit_set_huge_pages(int most_mib) {
  npu_ce::most_bytes.store(int64_t(most_mib) << 20, std::memory_order_relaxed);
}
