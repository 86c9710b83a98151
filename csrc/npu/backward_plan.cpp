// SPDX-License-Identifier: Apache-2.0
#include "backward_plan.h"

#include <algorithm>

#include "../../ascendc/ub/backward.h"

namespace npu_ce {
namespace {

constexpr uint32_t kMostRepeats = 255;          // of an instruction with strides
constexpr uint32_t kMostTileBytes = 64 * 1024;  // narrow layout: longer copies are no faster
constexpr uint32_t kWideGroup = 64;             // rows: each tile of weights is read once for 64
constexpr uint32_t kNarrowColumns = 640;        // above this, a tile holds too few rows to pay for its Select
constexpr uint64_t kWholeRows = 2048;           // from this many rows on, cores get whole rows
constexpr uint32_t kPiece = 512;                // columns of a piece at most, where rows are cut
constexpr uint32_t kPieceStep = 128;  // columns: 512 bytes of float32, so that cores seldom meet in one GM line

struct Needs {
  uint32_t element;  // bytes
  BackwardOptions options;
  uint32_t row_inputs;   // vectors over the rows that are read, float32 at most
  uint32_t row_vectors;  // float32 vectors over the rows that are worked on
};

Needs needs_of(const CeProblem& problem, const CeGradients& gradients, bool narrow) {
  const BackwardOptions options(problem, gradients);
  return {ElementBytes(problem.dtype), options, CountRowInputs(gradients, options.log_prob && !narrow),
          CountRowVectors(problem, options)};
}

// Sets the buffers that grow with the rows of a group. Returns the bytes of these, of inputs that are one number for
// all rows, and of the buffers of common/target.h and common/logits.h.
uint32_t set_row_buffers(const CeProblem& problem, const Needs& needs, CeBackwardPlan& plan) {
  const uint32_t length = plan.row_vector = ceil_to(plan.group_rows, kCeLanes);
  CeBackwardBuffers& bytes = plan.buffers;
  bytes.row_inputs = LaneBytes(needs.row_inputs * length);
  bytes.row_vectors = LaneBytes(needs.row_vectors * length);
  bytes.row_starts = plan.narrow ? LaneBytes(length) : 0;
  return plan.row_buffers * bytes.row_inputs + kSingleBytes + bytes.row_vectors + bytes.row_starts +
         TargetBytes(problem.target_dtype, length).Sum(plan.row_buffers) + NumeratorBytes(problem.softcap);
}

uint32_t set_tile_buffers(const Needs& needs, bool weights, uint32_t elements, CeBackwardPlan& plan) {
  CeBackwardBuffers& bytes = plan.buffers;
  const BackwardOptions& options = needs.options;
  const bool half = needs.element == 2;
  const uint32_t floats = LaneBytes(ceil_to(elements, kCeLanes));
  bytes.tile = ceil_to(elements, kCeLanes) * needs.element;
  bytes.log_prob = options.log_prob ? bytes.tile : 0;
  bytes.work = half ? floats : 0;
  bytes.result = half && options.capped ? floats : 0;
  bytes.term =
      options.capped || options.entropy || (options.log_prob && half) || (plan.narrow && options.weighted) ? floats : 0;
  bytes.weights = weights ? LaneBytes(ceil_to(plan.tile_columns, kCeLanes)) : 0;
  return (plan.input_tiles + 2) * bytes.tile + 2 * bytes.log_prob + bytes.work + bytes.result + bytes.term +
         bytes.weights;
}

bool fits_narrow(const CeProblem& problem, const Needs& needs, uint32_t rows, uint32_t ub_bytes, CeBackwardPlan& plan) {
  plan.group_rows = rows;
  const uint32_t pitch = plan.tile_columns;
  const bool by_blocks = pitch <= kCeBlockPitch;
  const uint32_t repeats = by_blocks ? rows / 8 : rows, chunks = ceil_div(pitch, by_blocks ? 8 : kCeLanes);
  if (repeats > kMostRepeats || rows * pitch * needs.element > kMostTileBytes) return false;
  CeBackwardBuffers& buffers = plan.buffers;
  const uint32_t bytes =
      set_row_buffers(problem, needs, plan) + set_tile_buffers(needs, problem.weight != nullptr, rows * pitch, plan);
  buffers.row_blocks = needs.element == 4 ? BlocksBytes(ceil_to(rows, kBlockFloats)) : 0;
  buffers.column_index = LaneBytes(ceil_to(pitch, kCeLanes));
  buffers.bits = chunks * BitBytes(repeats * kCeLanes);
  return bytes + buffers.row_blocks + buffers.column_index + buffers.bits <= ub_bytes;
}

bool plan_narrow(const CeProblem& problem, const CeGradients& gradients, const NpuLimits& limits,
                 CeBackwardPlan& plan) {
  if (problem.classes > kNarrowColumns) return false;
  const Needs needs = needs_of(problem, gradients, true);
  plan.narrow = 1;
  plan.input_tiles = 2;
  plan.row_buffers = 2;
  plan.tile_columns = ceil_to(problem.classes, kBlockBytes / needs.element);
  uint32_t rows = 0;
  while (fits_narrow(problem, needs, rows + 8, limits.ub_bytes, plan)) rows += 8;
  if (rows == 0) return false;
  fits_narrow(problem, needs, rows, limits.ub_bytes, plan);
  plan.pieces = 1;
  plan.piece_columns = problem.classes;
  return true;
}

// Returns the bytes of all buffers, without a gap.
uint32_t set_wide(const CeProblem& problem, const Needs& needs, uint32_t columns, CeBackwardPlan& plan) {
  plan.group_rows = kWideGroup;
  plan.tile_columns = columns;
  const uint32_t bytes =
      set_row_buffers(problem, needs, plan) + set_tile_buffers(needs, needs.options.weighted, columns, plan);
  plan.buffers.row_elements = RowElementBytes(needs.element, plan.row_vector);
  return bytes + plan.buffers.row_elements;
}

// The bytes of CeBackwardBuffers::gap, which half dtypes have where there is room for it.
uint32_t gap_before_tiles(const Needs& needs, const CeBackwardPlan& plan, uint32_t bytes, uint32_t ub_bytes) {
  const CeBackwardBuffers& buffers = plan.buffers;
  const uint32_t tiles = (plan.input_tiles + 2) * buffers.tile + 2 * buffers.log_prob + buffers.weights;
  const uint32_t before = bytes - tiles;
  return needs.element == 2 && before < kCeUbThird && kCeUbThird + tiles <= ub_bytes ? kCeUbThird - before : 0;
}

// With little work, a core has whole rows or one piece of a row. The end of a row, whole rows and the beginning of
// another would be three groups, and to compute the coefficients of each takes as long as some thousand elements.
uint32_t pieces_of(const CeProblem& problem) {
  if (problem.rows >= kWholeRows) return 1;
  const uint64_t most = ceil_div(problem.classes, kPiece), cores_of_row = useful_cores(problem) / problem.rows;
  return static_cast<uint32_t>(is_little(problem) ? std::clamp<uint64_t>(cores_of_row, 1, most) : most);
}

void plan_wide(const CeProblem& problem, const CeGradients& gradients, const NpuLimits& limits, CeBackwardPlan& plan) {
  const Needs needs = needs_of(problem, gradients, false);
  plan.narrow = 0;
  plan.input_tiles = needs.options.log_prob ? 2 : kCeMostInputTiles;
  plan.row_buffers = 1;
  uint32_t most = 0;
  while (set_wide(problem, needs, most + kPieceStep, plan) <= limits.ub_bytes) most += kPieceStep;
  // Tiles of one size rather than large ones and a small rest.
  const uint32_t tiles = ceil_div(problem.classes, most);
  const uint32_t columns = std::min<uint32_t>(most, ceil_to(ceil_div(problem.classes, tiles), kPieceStep));
  plan.buffers.gap = gap_before_tiles(needs, plan, set_wide(problem, needs, columns, plan), limits.ub_bytes);
  const uint32_t pieces = pieces_of(problem);
  plan.piece_columns = pieces == 1 ? problem.classes : ceil_to(ceil_div(problem.classes, pieces), kPieceStep);
  plan.pieces = ceil_div(problem.classes, plan.piece_columns);
}

// Enough spans to share out even the sum of a single row.
CeSumPlan plan_sums(uint64_t rows, uint32_t columns, uint64_t& workspace) {
  constexpr uint64_t kUnits = 256;
  constexpr uint32_t kLeastSpan = 2048;
  const uint64_t wanted = std::min<uint64_t>(ceil_div(kUnits, rows), ceil_div(columns, kLeastSpan));
  CeSumPlan plan{};
  plan.span_columns = ceil_to(ceil_div(columns, uint32_t(wanted)), kCeLanes);
  plan.spans = ceil_div(columns, plan.span_columns);
  plan.partials = workspace;
  if (plan.spans > 1) workspace += rows * plan.spans;
  plan.sums = workspace;
  workspace += rows;
  return plan;
}

}  // namespace

CeBackwardPlan plan_backward(const CeProblem& problem, const CeGradients& gradients, const NpuLimits& limits) {
  CeBackwardPlan plan{};
  if (problem.rows == 0 || problem.classes == 0) return plan;
  if (!plan_narrow(problem, gradients, limits, plan)) {
    plan = {};
    plan_wide(problem, gradients, limits, plan);
    const Needs needs = needs_of(problem, gradients, false);
    uint64_t workspace = 0;
    if (needs.options.log_prob) plan.log_prob_sums = plan_sums(problem.rows, problem.classes, workspace);
    if (needs.options.weighted) plan.weight_total = plan_sums(1, problem.classes, workspace);
    plan.workspace_bytes = workspace * sizeof(float);
  }
  plan.blocks = blocks_of(problem, problem.rows * plan.pieces, limits.cores);
  plan.bypass_l2 = beyond_l2_share(problem);
  return plan;
}

}  // namespace npu_ce
