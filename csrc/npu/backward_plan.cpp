// SPDX-License-Identifier: Apache-2.0
#include "backward_plan.h"

#include <algorithm>

namespace {

constexpr uint32_t kBlock = 32;                 // bytes that UB is addressed in
constexpr uint32_t kRepeat = 256;               // bytes that a vector instruction takes at a time
constexpr uint32_t kMostRepeats = 255;          // of an instruction with strides
constexpr uint32_t kMostTileBytes = 64 * 1024;  // of narrow rows: more makes no copy faster
constexpr uint32_t kWideGroup = 64;             // rows: each tile of weights is read once for 64
constexpr uint32_t kNarrowColumns = 640;        // above this, a tile holds too few rows to pay for its Select
constexpr uint64_t kWholeRows = 2048;           // from so many on, rows are dealt to the cores whole
constexpr uint32_t kPiece = 512;                // columns at most, of rows that are not
constexpr uint32_t kPieceStep = 128;  // columns: 512 bytes of float32, so that cores seldom meet in one GM line

template <class N>
N ceil_div(N a, N b) {
  return (a + b - 1) / b;
}
template <class N>
N ceil_to(N a, N b) {
  return ceil_div(a, b) * b;
}

struct Needs {
  uint32_t element;  // bytes
  bool smooth_weights, entropy, log_prob, capped;
  uint32_t row_inputs;   // float32 vectors that are read,
  uint32_t row_vectors;  // and that are worked on: BackwardRows::TakeVectors
};

bool is_vector(const CeRowVector& vector) { return vector.data != nullptr && vector.stride != 0; }

Needs needs_of(const CeProblem& problem, const CeGradients& gradients, bool narrow) {
  Needs needs{};
  needs.element = problem.dtype == kCeFloat32 ? 4 : 2;
  needs.smooth_weights = gradients.loss.data && problem.label_smoothing != 0 && problem.weight;
  needs.entropy = gradients.entropy.data;
  needs.log_prob = gradients.log_prob;
  needs.capped = problem.softcap != 0;
  needs.row_inputs = 2 + is_vector(gradients.loss) + is_vector(gradients.z_loss) + is_vector(gradients.lse) +
                     is_vector(gradients.entropy) + needs.entropy + (needs.log_prob && !narrow);
  const bool loss = gradients.loss.data || gradients.z_loss.data;
  const bool smooth = gradients.loss.data && problem.label_smoothing != 0;
  const bool rest = needs.entropy || needs.log_prob || gradients.lse.data || smooth || (loss && problem.z_loss != 0);
  needs.row_vectors =
      6 + (problem.weight != nullptr) + 2 * needs.log_prob + needs.entropy + smooth + rest + needs.capped;
  return needs;
}

// What grows with the rows of a group. The buffers of common/target.h and common/logits.h are among it, singles_ of
// RowInputs, and row_starts_ of BackwardNarrow.
uint32_t set_row_buffers(const CeProblem& problem, const Needs& needs, CeBackwardPlan& plan) {
  const uint32_t length = plan.row_vector = ceil_to(plan.group_rows, kCeLanes);
  const uint32_t vector = length * sizeof(float);
  CeBackwardBuffers& bytes = plan.buffers;
  bytes.row_inputs = needs.row_inputs * vector;
  bytes.row_vectors = needs.row_vectors * vector;
  const uint32_t words = problem.target_dtype == kCeInt64 ? 2 : 1;
  const uint32_t targets = (plan.row_buffers * words + 2) * vector + 3 * ceil_to(length / 8, kBlock) + 3 * kRepeat;
  const uint32_t capped = needs.capped ? kBlock : 0;
  const uint32_t singles = 16 * kBlock, starts = plan.narrow ? vector : 0;
  return plan.row_buffers * bytes.row_inputs + bytes.row_vectors + singles + starts + targets + capped;
}

uint32_t set_tile_buffers(const Needs& needs, bool weights, uint32_t elements, CeBackwardPlan& plan) {
  CeBackwardBuffers& bytes = plan.buffers;
  const bool half = needs.element == 2;
  const uint32_t floats = ceil_to(elements, kCeLanes) * uint32_t(sizeof(float));
  bytes.tile = floats / sizeof(float) * needs.element;
  bytes.log_prob = needs.log_prob ? bytes.tile : 0;
  bytes.work = half ? floats : 0;
  bytes.result = half && needs.capped ? floats : 0;
  bytes.term =
      needs.capped || needs.entropy || (needs.log_prob && half) || (plan.narrow && needs.smooth_weights) ? floats : 0;
  bytes.weights = weights ? ceil_to(plan.tile_columns, kCeLanes) * uint32_t(sizeof(float)) : 0;
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
  buffers.row_blocks = needs.element == 4 ? ceil_to(rows, 8u) * kBlock : 0;
  buffers.column_index = ceil_to(pitch, kCeLanes) * uint32_t(sizeof(float));
  buffers.bits = chunks * ceil_to(repeats * kCeLanes / 8, kBlock);
  return bytes + buffers.row_blocks + buffers.column_index + buffers.bits <= ub_bytes;
}

bool plan_narrow(const CeProblem& problem, const CeGradients& gradients, const npu_ce::NpuLimits& limits,
                 CeBackwardPlan& plan) {
  if (problem.classes > kNarrowColumns) return false;
  const Needs needs = needs_of(problem, gradients, true);
  plan.narrow = 1;
  plan.input_tiles = 2;
  plan.row_buffers = 2;
  plan.tile_columns = ceil_to(problem.classes, kBlock / needs.element);
  uint32_t rows = 0;
  while (fits_narrow(problem, needs, rows + 8, limits.ub_bytes, plan)) rows += 8;
  if (rows == 0) return false;
  fits_narrow(problem, needs, rows, limits.ub_bytes, plan);
  plan.pieces = 1;
  plan.piece_columns = problem.classes;
  return true;
}

// Returns what all buffers take.
uint32_t set_wide(const CeProblem& problem, const Needs& needs, uint32_t columns, CeBackwardPlan& plan) {
  plan.group_rows = kWideGroup;
  plan.tile_columns = columns;
  const uint32_t bytes =
      set_row_buffers(problem, needs, plan) + set_tile_buffers(needs, needs.smooth_weights, columns, plan);
  // Of three kinds, and in a half dtype one kind as float32.
  plan.buffers.row_elements = (3 + (needs.element == 2 ? 2 : 0)) * plan.row_vector * kBlock;
  return bytes + plan.buffers.row_elements;
}

// Where there is room for it, and a half dtype is cast.
uint32_t gap_before_tiles(const Needs& needs, const CeBackwardPlan& plan, uint32_t bytes, uint32_t ub_bytes) {
  const CeBackwardBuffers& buffers = plan.buffers;
  const uint32_t tiles = (plan.input_tiles + 2) * buffers.tile + 2 * buffers.log_prob + buffers.weights;
  const uint32_t before = bytes - tiles;
  return needs.element == 2 && before < kCeUbThird && kCeUbThird + tiles <= ub_bytes ? kCeUbThird - before : 0;
}

// With little work, a core has whole rows or one piece of a row: to work out the numbers of a row's end, of whole rows
// and of a row's beginning takes three times as long as of one group, and that as long as some thousand elements.
uint32_t pieces_of(const CeProblem& problem) {
  if (problem.rows >= kWholeRows) return 1;
  const uint64_t most = ceil_div(problem.classes, kPiece), cores_of_row = npu_ce::useful_cores(problem) / problem.rows;
  return static_cast<uint32_t>(npu_ce::is_little(problem) ? std::clamp<uint64_t>(cores_of_row, 1, most) : most);
}

void plan_wide(const CeProblem& problem, const CeGradients& gradients, const npu_ce::NpuLimits& limits,
               CeBackwardPlan& plan) {
  const Needs needs = needs_of(problem, gradients, false);
  plan.narrow = 0;
  plan.input_tiles = needs.log_prob ? 2 : kCeMostInputTiles;
  plan.row_buffers = 1;
  uint32_t most = 0;
  while (set_wide(problem, needs, most + kPieceStep, plan) <= limits.ub_bytes) most += kPieceStep;
  // Tiles of one size rather than large ones and a small rest.
  const uint32_t tiles = ceil_div(problem.classes, most);
  const uint32_t columns = std::min(most, ceil_to(ceil_div(problem.classes, tiles), kPieceStep));
  plan.buffers.gap = gap_before_tiles(needs, plan, set_wide(problem, needs, columns, plan), limits.ub_bytes);
  const uint32_t pieces = pieces_of(problem);
  plan.piece_columns = pieces == 1 ? problem.classes : ceil_to(ceil_div(problem.classes, pieces), kPieceStep);
  plan.pieces = ceil_div(problem.classes, plan.piece_columns);
}

// So many spans that even one row's sum is shared out.
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

CeBackwardPlan plan_ce_backward(const CeProblem& problem, const CeGradients& gradients,
                                const npu_ce::NpuLimits& limits) {
  CeBackwardPlan plan{};
  if (problem.rows == 0 || problem.classes == 0) return plan;
  if (!plan_narrow(problem, gradients, limits, plan)) {
    plan = {};
    plan_wide(problem, gradients, limits, plan);
    const Needs needs = needs_of(problem, gradients, false);
    uint64_t workspace = 0;
    if (needs.log_prob) plan.log_prob_sums = plan_sums(problem.rows, problem.classes, workspace);
    if (needs.smooth_weights) plan.weight_total = plan_sums(1, problem.classes, workspace);
    plan.workspace_bytes = workspace * sizeof(float);
  }
  plan.blocks = npu_ce::blocks_of(problem, problem.rows * plan.pieces, limits.cores);
  plan.round_l2 = npu_ce::beyond_l2_share(problem);
  return plan;
}
