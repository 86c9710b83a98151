// SPDX-License-Identifier: Apache-2.0
// What backward reads and writes, and how it is cut: what csrc/npu/backward_plan.cpp decides and ascendc/backward/
// does.
#pragma once

#include "problem.h"

// Reading a tile takes as long as computing and writing another, but only on average: a third buffer keeps the reads
// going.
constexpr uint32_t kCeMostInputTiles = 3;

// One value per row: `stride` 1, or one element for all rows: `stride` 0. Absent when data is null.
struct CeRowVector {
  void* data;
  int32_t dtype;  // float32, float16 or bfloat16
  int32_t stride;
};

// What backward reads beside the problem, and the one thing that it writes.
struct CeGradients {
  CeRowVector loss;
  CeRowVector z_loss;
  CeRowVector lse;
  CeRowVector entropy;
  const void* log_prob;  // gradient of log_prob: the input's dtype, column stride 1, or null
  uint64_t log_prob_row_stride;
  const float* entropy_value;  // forward's entropy; present when the gradient of entropy is
  const float* row_stats;      // [2, rows]
  const float* denominators;   // [2]
  void* input_gradient;        // [rows, classes], contiguous; may be CeProblem::input
  float* workspace;
};

// Bytes of UB of each buffer; 0 for one that is not needed. A queue has two buffers of that size, unless the plan or
// the comment says otherwise.
struct CeBackwardBuffers {
  uint32_t tile;          // queues: logits (input_tiles), and the gradient on its way out, in the input's dtype
  uint32_t log_prob;      // queue: the tile of grad_log_prob
  uint32_t weights;       // one buffer, float32: the weights of a tile's columns
  uint32_t work;          // float32: the tile's logits, in place of which their gradient is built (half dtypes)
  uint32_t result;        // float32: the gradient, where the capped logits are still needed (half dtypes)
  uint32_t term;          // float32: one term of the sum
  uint32_t row_inputs;    // queue: what is read per row
  uint32_t row_vectors;   // float32 vectors over the rows of a group
  uint32_t row_starts;    // int32: where each row begins in a tile (narrow)
  uint32_t row_elements;  // queue of one buffer: a block of 32 bytes per row for each element fetched by itself (wide)
  uint32_t row_blocks;    // a block of 32 bytes per row, which holds the row's value eight times (narrow, float32)
  uint32_t column_index;  // float32: 0, 1, 2, ... (narrow)
  uint32_t bits;          // the result of one Compare of a tile (narrow)
  uint32_t gap;           // left empty, so that tiles begin in another third of the UB than what precedes them (wide)
};

// Sums of rows. Each is cut into spans, whose sums a second launch adds where there are more than one. The cut depends
// on the sizes alone, so the sums' bits do not depend on the number of cores.
struct CeSumPlan {
  uint32_t spans;  // 0: no sums are needed
  uint32_t span_columns;
  uint64_t partials;  // where the spans' sums go, if there are several
  uint64_t sums;
};

struct CeBackwardPlan {
  uint32_t narrow;  // 1: many rows to a tile, 0: a tile is a piece of one row
  uint32_t blocks;
  uint32_t tile_columns;  // narrow: from one row of a tile to the next
  uint32_t group_rows;    // rows whose coefficients are computed together; narrow: the rows of a tile
  uint32_t row_vector;    // length of a vector over these rows: whole repeats
  // Wide: each row is cut into so many pieces, which are dealt to the cores.
  uint32_t pieces;
  uint32_t piece_columns;
  // Numbers of buffers, of the logits and of what is read per row: all queues together may have 8 (page TQue).
  uint32_t input_tiles;
  uint32_t row_buffers;
  uint32_t bypass_l2;  // 1: reads bypass the L2, which is left to the writes
  // Wide: sums over the classes, where they are needed. Offsets are in floats of the workspace.
  CeSumPlan log_prob_sums;  // of each row of grad_log_prob
  CeSumPlan weight_total;
  uint64_t workspace_bytes;
  CeBackwardBuffers buffers;
};
