// SPDX-License-Identifier: Apache-2.0
#include "rules.h"

namespace virtual_cann {

const char* rule_name(Rule rule) {
#define NAME(rule) \
  case Rule::rule: \
    return #rule
  switch (rule) {
    NAME(ub_capacity);
    NAME(ub_buffers);
    NAME(ub_bounds);
    NAME(ub_alignment);
    NAME(ub_uninitialised);
    NAME(gm_bounds);
    NAME(gm_alignment);
    NAME(one_pipe);
    NAME(queue_buffers);
    NAME(queue_alloc);
    NAME(queue_enqueue);
    NAME(queue_dequeue);
    NAME(queue_free);
    NAME(queue_leftover);
    NAME(hazard_raw);
    NAME(hazard_war);
    NAME(hazard_waw);
    NAME(event_wait);
    NAME(event_set);
    NAME(event_leftover);
    NAME(event_ids);
    NAME(event_owner);
    NAME(barrier_pipe);
    NAME(repeat_limit);
    NAME(mask_limit);
    NAME(stride_limit);
    NAME(overlap);
    NAME(type);
    NAME(cast_mode);
    NAME(shift_limit);
    NAME(copy_length);
    NAME(pad_block);
    NAME(pad_padding);
    NAME(compare_length);
    NAME(select_mode);
    NAME(gather_offset);
    NAME(gm_race);
    NAME(gm_order);
    NAME(dcache_stale);
    NAME(dcache_dirty);
    NAME(dcache_shared);
    NAME(atomic_type);
    NAME(atomic_leftover);
    NAME(sync_all_kernel);
    NAME(sync_all_reached);
  }
#undef NAME
  return "unknown";
}

}  // namespace virtual_cann
