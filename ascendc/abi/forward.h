// SPDX-License-Identifier: Apache-2.0
// What forward writes, and how it is cut: what csrc/npu/forward_plan.cpp decides and ascendc/forward/ does.
#pragma once

#include "problem.h"

// Up to this many classes, all weights stay in UB, and rows take the narrow layout.
constexpr uint32_t kCeNarrowClasses = 1024;

// The most input buffers of the wide layout: each holds event ids, of which a pair of pipes has eight.
constexpr uint32_t kCeInputTiles = 7;

// What forward writes. Null means not asked for; everything is contiguous.
struct CeForwardOutputs {
  void* loss;  // loss_dtype: [rows] or one element
  void* z_loss;
  int32_t loss_dtype;
  void* log_prob;       // the input's dtype [rows, classes]
  float* lse;           // [rows]
  int64_t* argmax;      // [rows]
  float* entropy;       // [rows]
  float* row_stats;     // [2, rows]: max, then the log of the sum of exp(x' - max)
  float* denominators;  // [2]: sum of weight[target] over rows that count, and their number
  float* workspace;     // as many bytes as the plan says
};

// How forward shares out its work. A span is a run of a row's columns, a unit one span of one row; units are numbered
// row by row, and each core takes a run of them. Nothing here depends on the number of cores, so results do not either.
struct CeForwardTiling {
  uint32_t spans;         // of a row
  uint32_t span_columns;  // of every span but a row's last; a multiple of 64
  uint32_t tile_columns;  // of every tile but a span's last; a multiple of 64
  uint32_t tile_rows;     // narrow layout: rows of a copy, a multiple of 8. 0: wide layout, a tile is of one row
  uint32_t step_rows;     // narrow layout: rows of a tile that are worked on at a time, a multiple of 8
  uint32_t pitch;         // narrow layout: floats from row to row in UB
  uint32_t group_units;   // units that share a finish
  uint32_t input_tiles;   // buffers of the input
  uint32_t kept_tiles;    // wide layout with log_prob: a row's last tiles, which stay in UB until their log_prob is
                          // written; the others are read again. 0: another launch writes log_prob
  uint32_t apart;         // 1, wide layout: tiles, their floats and the folds' work begin in different thirds of the UB
};

// The launches of forward; one without blocks is left out. Offsets are in floats of the workspace.
struct CeForwardPlan {
  CeForwardTiling forward;
  CeForwardTiling merge;     // narrow, over the units' states: a row has `spans` columns
  CeForwardTiling log_prob;  // wide
  uint32_t forward_blocks;
  uint32_t merge_blocks;
  uint32_t log_prob_blocks;
  uint32_t reduce_blocks;  // of `reduce_sums` sums each; more than one need a last launch over their results
  uint32_t reduce_sums;
  uint32_t sum_rows;       // rows of each sum that forward leaves for the reduction; a core begins at a multiple of it
  uint32_t reduces;        // 1: the launch that finishes the rows has one block, and reduces them itself
  uint32_t bypass_l2;      // 1, wide layout: reads of the launch that writes log_prob bypass the L2
  uint64_t states_offset;  // vectors [states, units]
  uint64_t sums_offset;    // vectors [terms, sums]
  uint64_t partials_offset;  // vectors [terms, reduce_blocks]
  uint64_t workspace_bytes;
};
