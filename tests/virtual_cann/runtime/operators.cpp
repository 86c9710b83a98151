// SPDX-License-Identifier: Apache-2.0
#include "operators.h"

#include <algorithm>

#include "memory.h"
#include "streams.h"

namespace virtual_cann {
namespace {

// The live memory that holds every element of the tensor; null for none.
RegionHold hold(const aclTensor& tensor) {
  if (tensor.count() == 0) return nullptr;
  int64_t lowest = 0, highest = 0;  // offsets from the first element
  for (size_t dim = 0; dim < tensor.sizes.size(); ++dim) {
    int64_t reach = (tensor.sizes[dim] - 1) * tensor.strides[dim];
    (reach < 0 ? lowest : highest) += reach;
  }
  int64_t bytes = item_bytes(tensor.dtype);
  return require_region(tensor.first + lowest * bytes, static_cast<uint64_t>((highest - lowest + 1) * bytes), "tensor");
}

}  // namespace

void give_executor(const char* name, Plan plan, uint64_t* workspace_bytes, aclOpExecutor** executor) {
  for (const aclTensor& tensor : plan.tensors) hold(tensor);
  out(workspace_bytes, "workspaceSize") = 0;
  out(executor, "executor") = new aclOpExecutor{name, std::move(plan)};
}

void enqueue_operator(aclOpExecutor* executor, aclrtStream stream) {
  std::unique_ptr<aclOpExecutor> owned(&out(executor, "executor"));
  std::shared_ptr<Stream> queue = live_stream(stream);
  const bool synchronous = owned->plan.synchronous;
  queue->enqueue(owned->name, [plan = std::move(owned->plan)] {
    std::vector<RegionHold> holds;
    for (const aclTensor& tensor : plan.tensors) holds.push_back(hold(tensor));
    plan.run();
  });
  if (synchronous) queue->synchronize(kForever);
}

}  // namespace virtual_cann
