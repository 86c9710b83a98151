// SPDX-License-Identifier: Apache-2.0
// The rules that a kernel is judged by. A rule's name is what reports, tests and docs/virtual-npu.md call it.
#pragma once

namespace virtual_cann {

enum class Rule {
  ub_capacity,       // all buffers fit the UB that a kernel may use
  ub_buffers,        // 1 to 64 buffers, and none of 0 bytes
  ub_bounds,         // an access lies inside the buffer it was given
  ub_alignment,      // vector and DMA operands begin at 32 bytes
  ub_uninitialised,  // nothing is read before it was written
  gm_bounds,         // an access lies inside live device memory, and inside the size given to SetGlobalBuffer
  gm_alignment,      // DataCopy's operand in GM begins at a multiple of its element's size
  one_pipe,          // one TPipe at a time, and there is one where GetTPipePtr asks for it
  queue_buffers,     // at most 8 buffers in all queues of one position, but for queues after FreeAllEvent
  queue_alloc,       // AllocTensor finds a free buffer
  queue_enqueue,     // EnQue takes a tensor that AllocTensor of this queue gave, and not more than the depth
  queue_dequeue,     // DeQue finds an enqueued tensor
  queue_free,        // FreeTensor takes a tensor that is held, once
  queue_leftover,    // no tensor is held, and none enqueued, at the end
  hazard_raw,        // a read is ordered after the write it depends on
  hazard_war,        // a write is ordered after the reads of what it overwrites
  hazard_waw,        // a write is ordered after the write that it replaces
  event_wait,        // WaitFlag has a SetFlag before it: the core would hang
  event_set,         // SetFlag of an event that is clear
  event_leftover,    // no event is set at the end: it would let the next kernel through
  event_ids,         // at most 8 events of one pair of pipes
  event_owner,       // an event is one that AllocEventID or FetchEventID gave; what the first gave, goes back once
  barrier_pipe,      // PipeBarrier of a pipe that has one
  repeat_limit,      // 0 to 255 repeats
  mask_limit,        // a mask has lanes for the type, and at least one
  stride_limit,      // block and repeat strides fit their fields
  overlap,           // operands coincide or lie apart
  type,              // the instruction exists for this type
  cast_mode,         // the conversion exists with this rounding
  shift_limit,       // a shift by at most the width of the type
  copy_length,       // DataCopy moves whole blocks of 32 bytes, and at least one
  pad_block,         // DataCopyPad: block count, length and strides fit their fields
  pad_padding,       // DataCopyPad: padding fits 32 bytes, and its value the type
  compare_length,    // Compare covers whole repeats
  select_mode,       // Select's mode and its scratch
  gather_offset,     // Gather: offsets are aligned and inside the source, destination apart
  gm_race,           // two cores touch a byte of GM, one of them writing, with no SyncAll between
  gm_order,          // a DMA through GM waits for the DMA it depends on
  dcache_stale,      // a scalar read of GM does not find an old line in the data cache
  dcache_dirty,      // a line that SetValue wrote is cleaned before it is needed or the kernel ends
  dcache_shared,     // two cores do not write one 64-byte line through their caches
  atomic_type,       // the DMA can add this type
  atomic_leftover,   // atomic mode is off at the end
  sync_all_kernel,   // SyncAll needs a kernel that is launched on all cores at once
  sync_all_reached,  // every core reaches each SyncAll
};

const char* rule_name(Rule rule);

}  // namespace virtual_cann
