// SPDX-License-Identifier: Apache-2.0
// Forward in the wide layout: rows of a few KiB and more, a tile of one row at a time. Tiles stream through a queue;
// the next one is being copied while one is worked on, across the ends of rows and groups.
#pragma once

#include "../common/logits.h"
#include "row_finish.h"
#include "wide_floats.h"
#include "wide_log_prob.h"
#include "wide_tile.h"

namespace npu_ce {

template <class T>
class WideForward {
 public:
  __aicore__ inline void Init(TPipe* pipe, const CeProblem& problem, const CeForwardOutputs& outputs,
                              const CeForwardPlan& plan) {
    problem_ = problem;
    tiling_ = plan.forward;
    options_ = ForwardOptions(problem, outputs);
    states_to_ = outputs.workspace + plan.states_offset;
    units_ = problem.rows * tiling_.spans;
    input_ = InGm<T>(problem.input, (problem.rows - 1) * problem.row_stride + problem.classes);
    const uint32_t columns = tiling_.tile_columns, group = tiling_.group_units, vector = CeilTo(group, kCeLanes);
    const WideBytes bytes(options_, sizeof(T), columns, group);
    pipe->InitBuffer(in_, tiling_.input_tiles, bytes.in);
    floats_.InitBetween(pipe, tiling_, bytes);
    tile_.Init(pipe, options_, columns, kIsFloat<T> && WritesLogProb());
    if (WeightTiles()) {
      weights_ = InGm<float>(problem.weight, problem.classes);
      pipe->InitBuffer(weight_tiles_, kAhead, bytes.weight_tiles);
    }
    if (WritesLogProb()) {
      if (plan.bypass_l2 != 0) {
        input_.SetL2CacheHint(CacheMode::CACHE_MODE_DISABLE);
      }
      log_prob_.Init(problem, outputs.log_prob);
      const uint32_t tiles = (problem.classes + columns - 1) / columns;
      read_again_ = (tiles - tiling_.kept_tiles) * columns;
      for (uint32_t i = 0; i < tiling_.input_tiles; ++i) {
        written_[i] = pipe->AllocEventID<HardEvent::MTE3_MTE2>();
      }
    }
    targets_.Init(pipe, problem, vector);
    const uint64_t core = GetBlockIdx(), cores = GetBlockNum();
    begin_ = units_ * core / cores;  // every core has a unit
    end_ = units_ * (core + 1) / cores;
    next_ = {begin_, 0, false};
    ReadTargets(begin_);
    FetchAhead();  // what follows is done during these copies
    pipe->InitBuffer(target_block_, bytes.target_block);
    pipe->InitBuffer(target_offset_, bytes.target_offset);
    logits_.Init(pipe, problem);
    lanes_.Init(pipe, options_, group);
    states_.Init(pipe, options_, vector);
    if (tiling_.spans == 1) {
      target_weights_.Init(pipe, problem, vector);
      finish_.Init(pipe, problem, outputs, plan, vector);
    }
    floats_.InitLast(pipe, tiling_, bytes);
  }

  __aicore__ inline void Process() {
    for (uint64_t unit = begin_; unit < end_; unit += tiling_.group_units) {
      RunGroup(unit, GroupFrom(unit));
    }
    if (tiling_.spans == 1) {
      finish_.Close();
    }
    target_weights_.Close();
    if (WritesLogProb()) {
      for (uint32_t column = 0; column < read_again_; column += tiling_.tile_columns) {
        WriteAgain(end_ - 1, column);
      }
      for (uint32_t i = 0; i < tiling_.input_tiles; ++i) {
        WaitForWrite(i);
        GetTPipePtr()->ReleaseEventID<HardEvent::MTE3_MTE2>(written_[i]);
      }
    }
  }

 private:
  struct Place {
    uint64_t unit;
    uint32_t column;  // of the span
    bool again;       // the tile there is the previous unit's, which is read again
  };

  __aicore__ inline bool WritesLogProb() const { return tiling_.kept_tiles > 0; }
  __aicore__ inline bool WeightTiles() const { return options_.smoothing && options_.weights; }

  __aicore__ inline uint64_t RowOf(uint64_t unit) const { return unit / tiling_.spans; }
  __aicore__ inline uint32_t SpanBegin(uint64_t unit) const { return unit % tiling_.spans * tiling_.span_columns; }
  __aicore__ inline uint32_t SpanColumns(uint64_t unit) const {
    return Least(tiling_.span_columns, problem_.classes - SpanBegin(unit));
  }

  __aicore__ inline uint32_t GroupFrom(uint64_t unit) const {
    return end_ - unit < tiling_.group_units ? static_cast<uint32_t>(end_ - unit) : tiling_.group_units;
  }
  __aicore__ inline uint32_t RowsOf(uint64_t first, uint32_t count) const {
    return RowOf(first + count - 1) - RowOf(first) + 1;
  }
  // Reads the targets a group ahead: copies are made in order, so one awaited at once would first wait for a whole
  // tile.
  __aicore__ inline void ReadTargets(uint64_t first) {
    if (first < end_) {
      targets_.Read(RowOf(first), RowsOf(first, GroupFrom(first)));
    }
  }

  // Keeps kAhead tiles being copied, as far as there are buffers.
  __aicore__ inline void FetchAhead() {
    while (ahead_ < kAhead && fetched_ - freed_ < tiling_.input_tiles &&
           (next_.unit < end_ || next_.column < read_again_)) {
      FetchNext();
    }
  }

  // Begins to copy the tile at next_, and moves next_ on. Tiles of a row that are read again alternate with those of
  // the next row: the vector unit has little to do for the former and much for the latter.
  __aicore__ inline void FetchNext() {
    const uint64_t unit = next_.again ? next_.unit - 1 : next_.unit;
    const uint32_t count = Least(tiling_.tile_columns, SpanColumns(unit) - next_.column);
    const uint32_t column = SpanBegin(unit) + next_.column;
    LocalTensor<T> tile = in_.template AllocTensor<T>();
    if (WritesLogProb()) {
      WaitForWrite(fetched_ % tiling_.input_tiles);
    }
    ++ahead_;
    ++fetched_;
    CopyIn(tile, input_[RowOf(unit) * problem_.row_stride + column], count);
    in_.EnQue(tile);
    if (WeightTiles() && !next_.again) {
      LocalTensor<float> weights = weight_tiles_.AllocTensor<float>();
      CopyIn(weights, weights_[column], count);
      weight_tiles_.EnQue(weights);
    }
    if (!next_.again && InTurn(next_.unit, next_.column)) {
      next_.again = true;
      return;
    }
    next_.column += count;
    if (next_.unit < end_ && next_.column == SpanColumns(next_.unit)) {
      next_ = {next_.unit + 1, 0, false};
    }
    next_.again = next_.unit == end_;
  }

  // Whether the previous row's tile at this column, which is read again, follows.
  __aicore__ inline bool InTurn(uint64_t unit, uint32_t column) const { return unit > begin_ && column < read_again_; }

  __aicore__ inline void RunGroup(uint64_t first, uint32_t count) {
    const uint64_t row = RowOf(first);
    targets_.Find(RowsOf(first, count));
    ReadTargets(first + count);
    Duplicate(target_block_.Get<float>(), 0.0f, count * kBlockFloats);
    lanes_.Reset(count);
    VectorBarrier();
    Order<HardEvent::V_S>();  // the classes are there, and nothing reads the last group's offsets
    if (tiling_.spans == 1 && target_weights_.Present()) {
      target_weights_.Fetch(targets_.Classes(), count);
    }
    for (uint32_t i = 0; i < count; ++i) {
      RunUnit(first + i, i, targets_.Classes().GetValue(RowOf(first + i) - row));
    }
    Order<HardEvent::S_V>();
    lanes_.Finish(states_, count);
    Gather(states_[State::kTarget], target_block_.Get<float>(), target_offset_.Get<uint32_t>(), 0, count);
    VectorBarrier();
    if (tiling_.spans == 1) {
      finish_.Finish(states_, targets_, target_weights_, first, count);
    } else {
      states_.Write(states_to_, units_, first, count);
    }
  }

  // The target's logit is taken from a tile as the block of 32 bytes that has it: a copy within UB, which waits for
  // nothing. Where in the block it lies is an offset for the Gather at the end of the group.
  __aicore__ inline void RunUnit(uint64_t unit, uint32_t index, uint32_t target) {
    const uint32_t begin = SpanBegin(unit), columns = SpanColumns(unit);
    target_offset_.Get<uint32_t>().SetValue(index, index * kBlockBytes + target % kBlockFloats * sizeof(float));
    for (uint32_t column = 0; column < columns; column += tiling_.tile_columns) {
      const uint32_t count = Least(tiling_.tile_columns, columns - column);
      LocalTensor<T> tile = in_.template DeQue<T>();
      LocalTensor<float> weights;
      if (WeightTiles()) {
        weights = weight_tiles_.DeQue<float>();
      }
      --ahead_;
      const bool stays = WritesLogProb() && column >= read_again_;
      const LocalTensor<float> x = floats_.Of(tile, count);
      tile_.SetSpare(!kIsFloat<T> && !stays, tile.template ReinterpretCast<float>());  // cast, and not needed again
      logits_.Transform(x, count);
      FillTail(x, count, -kInfinity);
      const uint32_t in_tile = target - begin - column;  // wraps to a large number if it is left of the tile
      if (in_tile < count) {
        DataCopy(target_block_.Get<float>()[index * kBlockFloats], x[in_tile / kBlockFloats * kBlockFloats],
                 kBlockFloats);
      }
      if (column == 0 && lanes_.Plain()) {
        tile_.Begin(lanes_, index, x, count);
      } else {
        tile_.Add(lanes_, index, x, begin + column, count, weights);
      }
      if (WeightTiles()) {
        weight_tiles_.FreeTensor(weights);
      }
      if (stays) {
        kept_[(column - read_again_) / tiling_.tile_columns] = tile;
      } else {
        Free(tile);
      }
      FetchAhead();
      if (InTurn(unit, column)) {
        WriteAgain(unit - 1, column);
      }
    }
    if (WritesLogProb()) {
      WriteLogProb(unit, index);
    }
  }

  // log_prob of the tiles that stayed in UB.
  __aicore__ inline void WriteLogProb(uint64_t row, uint32_t index) {
    float max, log_sum;
    lanes_.Read(index, &max, &log_sum);
    log_prob_.SetRow(max, log_sum);
    for (uint32_t column = read_again_; column < problem_.classes; column += tiling_.tile_columns) {
      WriteTile(kept_[(column - read_again_) / tiling_.tile_columns], row, column, !kIsFloat<T>);
    }
  }

  __aicore__ inline void WriteAgain(uint64_t row, uint32_t column) {
    LocalTensor<T> tile = in_.template DeQue<T>();
    --ahead_;
    WriteTile(tile, row, column, true);
  }

  // log_prob overwrites the tile in UB. `as_read`: the tile has what was copied in, and not x'.
  __aicore__ inline void WriteTile(LocalTensor<T>& tile, uint64_t row, uint32_t column, bool as_read) {
    const uint32_t count = Least(tiling_.tile_columns, problem_.classes - column);
    const LocalTensor<float> x = floats_.Of(tile, count);
    if (as_read) {
      logits_.Transform(x, count);
    }
    log_prob_.Round(tile, x, count);
    Order<HardEvent::V_MTE3>();
    log_prob_.Write(tile, row * problem_.classes + column, count);
    const uint32_t buffer = freed_ % tiling_.input_tiles;
    SetFlag<HardEvent::MTE3_MTE2>(written_[buffer]);
    writing_[buffer] = true;
    Free(tile);
    FetchAhead();
  }

  // The queue's own event orders a copy behind the vector unit, but not behind the copy to GM.
  __aicore__ inline void WaitForWrite(uint32_t buffer) {
    if (writing_[buffer]) {
      WaitFlag<HardEvent::MTE3_MTE2>(written_[buffer]);
      writing_[buffer] = false;
    }
  }

  // Tiles are freed in the order in which they were fetched, so tile n is in buffer n % tiling_.input_tiles.
  __aicore__ inline void Free(LocalTensor<T>& tile) {
    in_.FreeTensor(tile);
    ++freed_;
  }

  static constexpr uint32_t kAhead = WideBytes::kAhead;

  CeProblem problem_;
  CeForwardTiling tiling_;
  ForwardOptions options_;
  float* states_to_;
  uint64_t units_, begin_, end_;
  Place next_;
  uint32_t read_again_ = 0;                       // a row's first columns, which are read again
  uint64_t fetched_ = 0, freed_ = 0, ahead_ = 0;  // tiles since the first, and being copied now
  int32_t written_[kCeInputTiles];                // events of the buffers, and whether each is set
  bool writing_[kCeInputTiles] = {};
  GlobalTensor<T> input_;
  GlobalTensor<float> weights_;
  LocalTensor<T> kept_[kCeInputTiles];
  TQue<QuePosition::VECIN, kAhead> in_, weight_tiles_;
  TBuf<QuePosition::VECCALC> target_block_, target_offset_;
  WideFloats<T> floats_;
  Logits logits_;
  WideTile tile_;
  UnitLanes lanes_;
  States states_;
  Targets targets_;
  TargetWeights target_weights_;
  RowFinish finish_;
  WideLogProb<T> log_prob_;
};

}  // namespace npu_ce
