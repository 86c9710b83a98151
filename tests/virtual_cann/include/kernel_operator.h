// SPDX-License-Identifier: Apache-2.0
// Ascend C for the virtual CANN: the part of the API that A2 vector kernels use. The rest is not modelled, and does not
// compile.
#pragma once

#include "ascendc/atomic.h"
#include "ascendc/cast.h"
#include "ascendc/compare_select.h"
#include "ascendc/copy.h"
#include "ascendc/copy_pad.h"
#include "ascendc/create_vec_index.h"
#include "ascendc/duplicate.h"
#include "ascendc/events.h"
#include "ascendc/gather.h"
#include "ascendc/mask.h"
#include "ascendc/queue.h"
#include "ascendc/reduce.h"
#include "ascendc/reduce_all.h"
#include "ascendc/system.h"
#include "ascendc/vector_binary.h"
#include "ascendc/vector_scalar.h"
#include "ascendc/vector_unary.h"
#include "machine/launch.h"

// As in the real headers: a non-inline variable in each unit, unless the tiling key is defined before.
#ifndef TILING_KEY_VAR
uint64_t g_tilingKey;
#endif
