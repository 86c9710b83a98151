// SPDX-License-Identifier: Apache-2.0
#include "forward_plan.h"

#include <algorithm>

#include "forward_ub.h"

namespace npu_ce {

namespace {

// Up to this many elements go to one core, which then reduces the rows too: that saves a launch.
constexpr uint64_t kAlone = 20'000;
// A unit of fewer columns is not worth its finish.
constexpr uint64_t kLeastSpan = 1024;
// From this many units on, any number of them is balanced.
constexpr uint64_t kEnoughUnits = 1000;
constexpr double kBalanced = 1.15;
constexpr uint32_t kReduceSums = 16384;

struct Spans {
  uint64_t count;
  uint64_t columns;
};

Spans spans_of(uint64_t classes, uint64_t wanted) {
  const uint64_t columns = ceil_to(ceil_div(classes, wanted), kLanes);
  return {ceil_div(classes, columns), columns};
}

// The work of the busiest core over the mean, for units dealt out in runs.
double imbalance(uint64_t rows, uint64_t classes, const Spans& spans, uint64_t cores) {
  const double busiest = static_cast<double>(ceil_div(rows * spans.count, cores) * spans.columns);
  return busiest * static_cast<double>(cores) / (static_cast<double>(rows) * static_cast<double>(classes));
}

uint64_t cores_of_forward(const CeProblem& problem) {
  return problem.rows * problem.classes <= kAlone ? 1 : useful_cores(problem);
}

// The worse of the two chips there are, which have 40 and 48 cores.
double worst_imbalance(uint64_t rows, uint64_t classes, const Spans& spans, uint64_t useful) {
  return std::max(imbalance(rows, classes, spans, std::min<uint64_t>(40, useful)),
                  imbalance(rows, classes, spans, std::min<uint64_t>(48, useful)));
}

Spans whole_rows(uint64_t classes) { return {1, ceil_to(classes, kLanes)}; }

// The fewest spans that are balanced on both chips. The chip that it runs on does not matter, so that results have the
// same bits on both.
Spans choose_spans(uint64_t rows, uint64_t classes, uint64_t useful) {
  Spans best = whole_rows(classes);
  double best_imbalance = 0;
  for (uint64_t wanted = 1; wanted == 1 || (wanted * kLeastSpan <= classes && wanted * rows <= kEnoughUnits);
       ++wanted) {
    const Spans spans = spans_of(classes, wanted);
    const double worst = worst_imbalance(rows, classes, spans, useful);
    if (wanted == 1 || worst < best_imbalance) {
      best = spans;
      best_imbalance = worst;
    }
    if (best_imbalance <= kBalanced) {
      break;
    }
  }
  return best;
}

// The size of each of the fewest equal tiles of at most `most` that cover `count`, rounded up to `multiple`.
uint32_t even_tiles(uint64_t count, uint64_t most, uint64_t multiple = kLanes) {
  return static_cast<uint32_t>(ceil_to(ceil_div(count, ceil_div(count, most)), multiple));
}

// Keeps whole rows in UB, in the fewest tiles that leave a buffer for the next row. Where none can be left, nothing is
// copied while a row's last tile is worked on, so a row has as many tiles as there are buffers, and these are short.
// False where rows do not fit.
bool keep_rows(const Ub& ub, uint64_t classes, uint64_t room, CeForwardTiling& tiling) {
  const uint64_t most = ub.most_input_tiles();
  for (const uint64_t spare : {1, 0}) {
    for (uint64_t tiles = spare ? 1 : most; tiles > 0 && tiles + spare <= most; spare ? ++tiles : --tiles) {
      const uint64_t columns = even_tiles(classes, ceil_to(ceil_div(classes, tiles), kLanes));
      uint64_t buffers = most;
      while (buffers > tiles + spare && ub.wide_per_column(buffers, true) * columns > room) --buffers;
      if (ub.wide_per_column(buffers, true) * columns > room) continue;
      tiling.tile_columns = static_cast<uint32_t>(columns);
      tiling.input_tiles = static_cast<uint32_t>(buffers);
      tiling.kept_tiles = static_cast<uint32_t>(ceil_div(classes, columns));
      return true;
    }
  }
  return false;
}

// Keeps as much of longer rows as leaves two buffers for reads.
void keep_ends_of_rows(const Ub& ub, uint64_t classes, uint64_t room, CeForwardTiling& tiling) {
  tiling.input_tiles = static_cast<uint32_t>(ub.most_input_tiles());
  tiling.kept_tiles = tiling.input_tiles - 2;
  tiling.tile_columns = even_tiles(classes, room / ub.wide_per_column(tiling.input_tiles, true) / kLanes * kLanes);
}

void plan_wide(const Ub& ub, const CeProblem& problem, uint64_t ub_bytes, CeForwardTiling& tiling) {
  const uint64_t classes = problem.classes;
  const auto columns = [&](const Spans& spans) { return std::min(spans.columns, classes); };
  // Enough units share a finish to make it cheap beside their tiles.
  const auto group = [&](const Spans& spans) { return columns(spans) <= 16384 ? 32 : 8; };
  const auto room = [&](const Spans& spans) { return ub_bytes - ub.wide_fixed(group(spans)); };
  const Spans whole = whole_rows(classes);
  Spans spans = choose_spans(problem.rows, classes, cores_of_forward(problem));
  // Spans cost log_prob one more launch, whole rows do not. So rows stay whole where that keeps 48 cores busy; with
  // little work also where it does not, if a row fits in UB.
  const bool balanced = imbalance(problem.rows, classes, whole, 48) <= kBalanced;
  if (ub.log_prob() && (balanced || (is_little(problem) && keep_rows(ub, classes, room(whole), tiling)))) spans = whole;
  tiling.spans = static_cast<uint32_t>(spans.count);
  tiling.span_columns = static_cast<uint32_t>(spans.columns);
  tiling.group_units = group(spans);
  if (spans.count == 1 && ub.log_prob()) {
    if (!keep_rows(ub, classes, room(spans), tiling)) keep_ends_of_rows(ub, classes, room(spans), tiling);
  } else {
    tiling.input_tiles = 2;
    tiling.tile_columns = even_tiles(columns(spans), room(spans) / ub.wide_per_column(2, false) / kLanes * kLanes);
  }
  tiling.apart = ub.fits_apart(tiling, ub_bytes);
}

// The distance between rows in UB, in elements; a copy pads each row to 32 bytes.
uint64_t pitch_of(uint64_t columns, uint64_t element_bytes) {
  const uint64_t pitch = ceil_to(columns, kBlockBytes / element_bytes);
  return pitch <= kCeBlockPitch ? pitch : ceil_to(columns, kLanes);
}

// How many rows one stored sum covers: as many as one instruction adds up, unless dealing them out together leaves
// cores idle. Two at the least, since two sums per row, of ce and of rows that count, would be much traffic beside the
// shortest rows.
uint64_t choose_sum_rows(const CeProblem& problem) {
  for (const uint64_t rows : {64, 8}) {
    const Spans sums{ceil_div(problem.rows, rows), rows};
    if (problem.rows > 0 && worst_imbalance(1, problem.rows, sums, cores_of_forward(problem)) <= kBalanced) return rows;
  }
  return 2;
}

// As many rows as one instruction takes, in at most 255 repeats: of eight rows each up to kCeBlockPitch, else of one.
uint64_t most_rows(uint64_t pitch) { return pitch <= kCeBlockPitch ? 1024 : 248; }

// False where not even eight rows fit: some options take several copies of a tile.
bool plan_narrow(const Ub& ub, const CeProblem& problem, uint64_t ub_bytes, uint64_t sum_rows,
                 CeForwardTiling& tiling) {
  // Bytes of a group's logits, and its rows. Targets and outputs have 4 or 8 bytes a row, and should be copied in long
  // pieces too.
  constexpr uint64_t kGroupBytes = 96 * 1024, kLeastGroup = 128, kMostGroup = 1536;
  constexpr uint64_t kTileBytes = 24 * 1024, kLeastTileBytes = 8 * 1024;  // longer copies are little or no faster
  constexpr uint64_t kRows = kBlockBytes / kFloat;
  const uint64_t pitch = pitch_of(problem.classes, ub.size()), row_bytes = pitch * ub.size();
  const uint64_t wanted = std::min(std::max(kGroupBytes / row_bytes, kLeastGroup), kMostGroup);
  const uint64_t group = ceil_to(std::min(wanted, problem.rows), kLanes);
  const uint64_t fixed = ub.narrow_fixed(pitch, group, sum_rows);
  const uint64_t most = std::min(most_rows(pitch), group);
  const auto rows_of_step = [&](uint64_t steps) {  // for so many steps to a tile
    const uint64_t row_bytes_of_step = steps * ub.narrow_of_tile(pitch) + ub.narrow_of_step(pitch);
    return fixed < ub_bytes ? std::min((ub_bytes - fixed) / row_bytes_of_step, most) / kRows * kRows : 0;
  };
  if (rows_of_step(1) == 0) return false;
  uint64_t steps = 1;
  while (steps * rows_of_step(steps) < std::min(group, kTileBytes / row_bytes) && rows_of_step(steps + 1) > 0) ++steps;
  tiling.spans = 1;
  tiling.span_columns = static_cast<uint32_t>(ceil_to(problem.classes, kLanes));
  // Tiles of one size: a short one would be done long before the copy of a long one. With little work a core has at
  // least two, since nothing is worked on during the first one's copy.
  const uint64_t of_a_core = ceil_div(problem.rows, cores_of_forward(problem));
  const uint64_t least = ceil_div(kLeastTileBytes, row_bytes), half_of_core = ceil_div(of_a_core, 2);
  const uint64_t half = is_little(problem) ? ceil_to(std::max(half_of_core, least), kRows) : group;
  tiling.tile_rows = even_tiles(group, std::min(steps * rows_of_step(steps), half), kRows);
  tiling.step_rows = even_tiles(tiling.tile_rows, rows_of_step(steps), kRows);
  tiling.pitch = static_cast<uint32_t>(pitch);
  tiling.group_units = static_cast<uint32_t>(group);
  tiling.input_tiles = 2;
  return true;
}

CeForwardTiling plan_merge(const Ub& ub, uint64_t spans, uint64_t ub_bytes) {
  CeForwardTiling tiling{};
  const uint64_t pitch = pitch_of(spans, kFloat);
  uint64_t rows = kLanes;
  while (rows > 8 && ub.merge(pitch, rows) > ub_bytes) rows -= 8;
  tiling.tile_rows = tiling.group_units = static_cast<uint32_t>(rows);
  tiling.pitch = static_cast<uint32_t>(pitch);
  return tiling;
}

CeForwardTiling plan_log_prob(const Ub& ub, const CeForwardTiling& forward, uint64_t classes, uint64_t ub_bytes) {
  CeForwardTiling tiling{};
  tiling.spans = forward.spans;
  tiling.span_columns = forward.span_columns;
  const uint64_t most = (ub_bytes - ub.log_prob_fixed()) / ub.log_prob_per_column() / kLanes * kLanes;
  tiling.tile_columns = even_tiles(std::min<uint64_t>(classes, forward.span_columns), most);
  return tiling;
}

}  // namespace

CeForwardPlan plan_forward(const CeProblem& problem, const CeForwardOutputs& outputs, const NpuLimits& limits) {
  CeForwardPlan plan{};
  const uint64_t useful = cores_of_forward(problem);
  const bool few_rows = problem.rows <= kLanes;  // one block merges them
  const Ub ub(problem, outputs, few_rows || useful == 1);

  const uint64_t sum_rows = choose_sum_rows(problem);
  const bool narrow =
      problem.classes <= kCeNarrowClasses && plan_narrow(ub, problem, limits.ub_bytes, sum_rows, plan.forward);
  if (!narrow) plan_wide(ub, problem, limits.ub_bytes, plan.forward);
  plan.sum_rows = narrow ? static_cast<uint32_t>(sum_rows) : 1;
  const uint64_t units = problem.rows * plan.forward.spans, sums = ceil_div(problem.rows, plan.sum_rows);
  const uint64_t work = narrow ? sums : units;
  plan.forward_blocks = useful == 1 ? std::min<uint64_t>(1, work) : blocks_of(problem, work, limits.cores);
  if (plan.forward.spans > 1) {
    plan.merge = plan_merge(ub, plan.forward.spans, limits.ub_bytes);
    plan.merge_blocks = static_cast<uint32_t>(std::min<uint64_t>(limits.cores, ceil_div(problem.rows, kLanes)));
  }
  if (!narrow && outputs.log_prob != nullptr && plan.forward.kept_tiles == 0) {
    plan.log_prob = plan_log_prob(ub, plan.forward, problem.classes, limits.ub_bytes);
    plan.log_prob_blocks = plan.forward_blocks;
  }
  plan.bypass_l2 = !narrow && outputs.log_prob != nullptr && beyond_l2_share(problem);
  plan.reduce_sums = kReduceSums;
  if (problem.reduction != kCeNone || outputs.denominators != nullptr) {
    const uint64_t blocks_of_rows = plan.forward.spans > 1 ? ceil_div(problem.rows, kLanes) : std::min(work, useful);
    plan.reduces = blocks_of_rows == 1;
    plan.reduce_blocks = plan.reduces ? 0 : static_cast<uint32_t>(std::max<uint64_t>(1, ceil_div(sums, kReduceSums)));
  }

  uint64_t floats = 0;
  const auto take = [&](uint64_t count) {
    const uint64_t offset = floats;
    floats += ceil_to(count, 512 / kFloat);  // whole lines of GM
    return offset;
  };
  plan.states_offset = take(plan.forward.spans > 1 ? 8 * units : 0);
  plan.sums_offset = take(plan.reduce_blocks > 0 ? ub.terms() * sums : 0);
  plan.partials_offset = take(plan.reduce_blocks > 1 ? ub.terms() * plan.reduce_blocks : 0);
  plan.workspace_bytes = floats * kFloat;
  return plan;
}

}  // namespace npu_ce
