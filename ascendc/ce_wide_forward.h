// SPDX-License-Identifier: Apache-2.0
// Forward in the wide layout: rows of a few KiB and more, a tile of one row at a time. Tiles stream through a queue;
// the next one is on its way while one is worked on, across the ends of rows and groups.
#pragma once

#include "ce_logits.h"
#include "ce_row_finish.h"
#include "ce_wide_log_prob.h"
#include "ce_wide_tile.h"

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
    const uint32_t columns = tiling_.tile_columns, group = tiling_.group_units;
    const uint32_t vector = CeilTo(group, kCeLanes);
    pipe->InitBuffer(in_, tiling_.input_tiles, columns * sizeof(T));
    if constexpr (!kIsFloat<T>) {
      pipe->InitBuffer(floats_, columns * sizeof(float));
    }
    if (WeightTiles()) {
      weights_ = InGm<float>(problem.weight, problem.classes);
      pipe->InitBuffer(weight_tiles_, kWeightTiles, columns * sizeof(float));
    }
    pipe->InitBuffer(target_block_, group * kBlockBytes);
    pipe->InitBuffer(target_offset_, group * sizeof(int32_t));
    logits_.Init(pipe, problem);
    tile_.Init(pipe, options_, columns, kIsFloat<T> && tiling_.keep_row);
    lanes_.Init(pipe, options_, group);
    states_.Init(pipe, options_, vector);
    targets_.Init(pipe, problem, vector);
    if (tiling_.spans == 1) {
      target_weights_.Init(pipe, problem, vector);
      finish_.Init(pipe, problem, outputs, plan, vector);
    }
    if (tiling_.keep_row) {
      log_prob_.Init(problem, outputs.log_prob);
      for (int32_t& event : written_) {
        event = pipe->AllocEventID<HardEvent::MTE3_MTE2>();
      }
    }
  }

  __aicore__ inline void Process(TPipe* pipe) {
    const uint64_t core = GetBlockIdx(), cores = GetBlockNum();
    const uint64_t begin = units_ * core / cores;
    end_ = units_ * (core + 1) / cores;
    next_ = {begin, 0};
    FetchAhead();
    for (uint64_t unit = begin; unit < end_; unit += tiling_.group_units) {
      const uint64_t left = end_ - unit;
      RunGroup(unit, left < tiling_.group_units ? left : tiling_.group_units);
    }
    target_weights_.Close();
    if (tiling_.keep_row) {
      for (uint32_t i = 0; i < tiling_.input_tiles && i < fetched_; ++i) {
        WaitFlag<HardEvent::MTE3_MTE2>(written_[i]);
      }
      for (int32_t event : written_) {
        pipe->ReleaseEventID<HardEvent::MTE3_MTE2>(event);
      }
    }
  }

 private:
  struct Place {
    uint64_t unit;
    uint32_t column;  // of the span
  };

  __aicore__ inline bool WeightTiles() const { return options_.smoothing && options_.weights; }

  // -- columns
  __aicore__ inline uint64_t RowOf(uint64_t unit) const { return unit / tiling_.spans; }
  __aicore__ inline uint32_t SpanBegin(uint64_t unit) const { return unit % tiling_.spans * tiling_.span_columns; }
  __aicore__ inline uint32_t SpanColumns(uint64_t unit) const {
    return Least(tiling_.span_columns, problem_.classes - SpanBegin(unit));
  }
  __aicore__ inline uint32_t TileColumns(const Place& place) const {
    return Least(tiling_.tile_columns, SpanColumns(place.unit) - place.column);
  }

  // Keeps tiles on their way, as far as there are buffers.
  __aicore__ inline void FetchAhead() {
    const uint32_t most = WeightTiles() ? kWeightTiles : kAhead;
    while (next_.unit < end_ && ahead_ < most && busy_ < tiling_.input_tiles) {
      FetchNext();
    }
  }

  // Begins to copy the tile at next_, and moves next_ on.
  __aicore__ inline void FetchNext() {
    ++ahead_;
    ++busy_;
    const uint32_t count = TileColumns(next_), column = SpanBegin(next_.unit) + next_.column;
    LocalTensor<T> tile = in_.template AllocTensor<T>();
    if (tiling_.keep_row && fetched_ >= tiling_.input_tiles) {
      WaitFlag<HardEvent::MTE3_MTE2>(written_[fetched_ % tiling_.input_tiles]);
    }
    ++fetched_;
    CopyIn(tile, input_[RowOf(next_.unit) * problem_.row_stride + column], count);
    in_.EnQue(tile);
    if (WeightTiles()) {
      LocalTensor<float> weights = weight_tiles_.AllocTensor<float>();
      CopyIn(weights, weights_[column], count);
      weight_tiles_.EnQue(weights);
    }
    next_.column += count;
    if (next_.column == SpanColumns(next_.unit)) {
      next_ = {next_.unit + 1, 0};
    }
  }

  __aicore__ inline void RunGroup(uint64_t first, uint32_t count) {
    const uint64_t row = RowOf(first);
    targets_.Load(row, RowOf(first + count - 1) - row + 1);
    Duplicate(target_block_.Get<float>(), 0.0f, count * kBlockFloats);
    lanes_.Reset(count);
    Order<HardEvent::V_S>();  // the classes are there, and nothing reads the last group's offsets
    if (tiling_.spans == 1 && target_weights_.Present()) {
      target_weights_.Fetch(targets_.Classes(), count);
    }
    for (uint32_t i = 0; i < count; ++i) {
      RunUnit(first + i, i, targets_.Classes().GetValue(RowOf(first + i) - row));
    }
    Order<HardEvent::S_V>();
    lanes_.Finish(states_, count);
    Gather(states_[kTarget], target_block_.Get<float>(), target_offset_.Get<uint32_t>(), 0, count);
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
      const LocalTensor<float> x = Floats(tile, count);
      logits_.Transform(x, count);
      const uint32_t in_tile = target - begin - column;  // wraps to a large number left of the tile
      if (in_tile < count) {
        FillTail(x, count, -kInfinity);
        DataCopy(target_block_.Get<float>()[index * kBlockFloats], x[in_tile / kBlockFloats * kBlockFloats],
                 kBlockFloats);
        VectorBarrier();
      }
      tile_.Add(lanes_, index, x, begin + column, count, weights);
      if (WeightTiles()) {
        weight_tiles_.FreeTensor(weights);
      }
      if (tiling_.keep_row) {
        kept_[column / tiling_.tile_columns] = tile;
      } else if (kIsFloat<T>) {
        Free(tile);
      }
      FetchAhead();
    }
    if (tiling_.keep_row) {
      WriteLogProb(unit, index);
    }
  }

  // The tile in float32, where it may be worked on in place. What is not kept, and was cast, is free at once.
  __aicore__ inline LocalTensor<float> Floats(LocalTensor<T>& tile, uint32_t count) {
    if constexpr (kIsFloat<T>) {
      return tile;
    } else {
      ToFloats(floats_.Get<float>(), tile, count);
      if (!tiling_.keep_row) {
        Free(tile);
        if (!WeightTiles()) {  // whose buffers are not free before the tile is done with
          FetchAhead();
        }
      }
      VectorBarrier();
      return floats_.Get<float>();
    }
  }

  // From the tiles of the row, which are still in UB (x' in float32, else what was copied in, to be transformed again),
  // into those tiles, and out. Buffers are filled in turn, so the tile that was copied in as number i, and its buffer's
  // next, share the event i % input_tiles: the queue's own event knows of the vector unit, not of the copy out.
  __aicore__ inline void WriteLogProb(uint64_t row, uint32_t index) {
    float max, log_sum;
    lanes_.Read(index, &max, &log_sum);
    log_prob_.SetRow(max, log_sum);
    const uint32_t tiles = (problem_.classes + tiling_.tile_columns - 1) / tiling_.tile_columns;
    for (uint32_t i = 0; i < tiles; ++i) {
      const uint32_t column = i * tiling_.tile_columns;
      const uint32_t count = Least(tiling_.tile_columns, problem_.classes - column);
      const LocalTensor<float> x = Floats(kept_[i], count);
      if constexpr (!kIsFloat<T>) {
        logits_.Transform(x, count);
      }
      log_prob_.Round(kept_[i], x, count);
      Order<HardEvent::V_MTE3>();
      log_prob_.Write(kept_[i], row * problem_.classes + column, count);
      SetFlag<HardEvent::MTE3_MTE2>(written_[out_ % tiling_.input_tiles]);
      ++out_;
      Free(kept_[i]);
    }
    FetchAhead();
  }

  __aicore__ inline void Free(LocalTensor<T>& tile) {
    in_.FreeTensor(tile);
    --busy_;
  }

  static constexpr uint32_t kAhead = 2;  // tiles of the input
  static constexpr uint32_t kWeightTiles = 2;

  CeProblem problem_;
  CeForwardTiling tiling_;
  ForwardOptions options_;
  float* states_to_;
  uint64_t units_, end_;
  Place next_;
  uint64_t fetched_ = 0, out_ = 0;  // tiles, from the first
  int32_t written_[kCeInputTiles];
  uint32_t ahead_ = 0;  // tiles on their way
  uint32_t busy_ = 0;   // buffers that are not free
  GlobalTensor<T> input_;
  GlobalTensor<float> weights_;
  LocalTensor<T> kept_[kCeInputTiles];
  TQue<QuePosition::VECIN, kAhead> in_;
  TQue<QuePosition::VECIN, kWeightTiles> weight_tiles_;
  TBuf<QuePosition::VECCALC> floats_, target_block_, target_offset_;
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
