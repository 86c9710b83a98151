// SPDX-License-Identifier: Apache-2.0
// ReduceMax, ReduceMin, ReduceSum: several instructions each, as in the real headers. They end on the scalar unit,
// which waits for the vector unit and then stores the result: so GetValue may follow at once, and so may V and MTE3,
// but each call drains the vector pipe. ReduceSum over more repeats than a repeat has lanes ends on the vector unit
// instead. Only the count form of ReduceSum leaves a full mask register.
#pragma once

#include "events.h"
#include "reduce_repeats.h"

namespace virtual_cann::api {

// The mask that the last instruction leaves: no kernel may rely on it, so it is empty.
constexpr VectorMask kLostMask{0, 0, false};

// A call and the instructions that it issues.
template <class T>
class ReduceAll {
 public:
  static constexpr uint32_t kLanes = kRepeatBytes / sizeof(T);

  ReduceAll(const char* api, AscendC::Place place, const AscendC::LocalTensor<T>& dst,
            const AscendC::LocalTensor<T>& work, uint32_t results)
      : call(api, place, VectorClass::reduce),
        api_(api),
        place_(place),
        dst_(operand(dst)),
        work_(operand(work)),
        results_(results) {}

  void judge(const Operand& src, const Extent& extent, uint64_t work_bytes) {
    call.require_operand(src, extent);
    call.require_alignment(dst_, results_ * sizeof(T));
    call.require_length(dst_, results_ * sizeof(T));
    call.require_alignment(work_);
    call.require_length(work_, work_bytes);
  }

  // Begins another vector instruction of the call.
  void next_instruction() { call.core.issue(Pipe::V, api_, place_); }
  void repeats(uint64_t count) {
    for (uint64_t left = count; left > 0; left -= std::min<uint64_t>(left, kMaxRepeats))
      call.work(std::min<uint64_t>(left, kMaxRepeats));
  }
  // Partial results are in the work tensor; only the call itself may read them.
  void partial_results(uint64_t bytes) { call.core.scribble(work_.address, static_cast<uint32_t>(bytes)); }
  void barrier() { call.core.barrier(Pipe::V); }

  void store_by_vector(const T* values) {
    std::memcpy(call.core.write(dst_.address, results_ * sizeof(T)), values, results_ * sizeof(T));
  }
  void store_by_scalar(const T* values) {
    order_pipes(call.core, Pipe::V, Pipe::S);
    call.core.issue(Pipe::S, api_, place_);
    store_by_vector(values);
    order_pipes(call.core, Pipe::S, Pipe::V);
    order_pipes(call.core, Pipe::S, Pipe::MTE3);
  }

  VectorCall call;

 private:
  const char* api_;
  AscendC::Place place_;
  const Operand dst_;
  const Operand work_;
  const uint32_t results_;  // 2 with an index, else 1
};

// Bytes of the work tensor for the (value, index) pairs of all repeats; with `levels`, also for those of each further
// pass (ReduceMax).
template <class T>
uint64_t work_bytes(uint64_t repeats, bool levels) {
  constexpr uint64_t lanes = kRepeatBytes / sizeof(T);
  uint64_t bytes = 0, results = 2 * repeats;
  for (int level = 0; level < (levels ? 3 : 1); ++level) {
    bytes += (results * sizeof(T) + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
    if (level > 0 && results <= 2) break;
    results = (results + lanes - 1) / lanes * 2;
  }
  return bytes;
}

// `tail`: the last repeat is not whole; the count form reduces it separately.
template <bool greatest, class T>
void reduce_extreme(ReduceAll<T>& all, const Operand& src, const Extent& extent, bool tail, bool with_index) {
  const uint64_t body = extent.repeats - tail;
  const uint64_t partial = work_bytes<T>(body, with_index);
  all.judge(src, extent, partial);

  SourceRepeats<T> source(all.call.core, extent, src, kNan);
  Extreme<T> best{};
  uint64_t index = 0;
  for (uint32_t repeat = 0; repeat < extent.repeats; ++repeat) {
    const uint32_t first = extent.first_active(repeat, 0, extent.lanes);
    if (first == extent.lanes) continue;
    const Extreme<T> here = extreme_of<greatest>(source.lanes(repeat), first, extent.lanes);
    const float old = widen(best.value), now = widen(here.value);
    if (repeat > 0 && !(greatest ? now > old : now < old) && !(old != old && now == now)) continue;
    best = here;
    index = uint64_t{repeat} * src.repeat_stride * src.per_block() + here.lane;
  }
  const T results[2] = {best.value, index_as_value<T>(index)};

  all.repeats(body);
  if (with_index && body == 1 && !tail) return all.store_by_vector(results);
  all.partial_results(partial);
  // A pass over the partial results until they fit one repeat, and one over that repeat.
  for (uint64_t left = 2 * body; body > 1;) {
    all.barrier();
    all.next_instruction();
    all.repeats((left + extent.lanes - 1) / extent.lanes);
    if (left <= 2) break;
    left = (left + extent.lanes - 1) / extent.lanes * 2;
  }
  all.store_by_scalar(results);
  if (!tail) return;
  for (int pass = 0; pass < 2; ++pass) {  // the tail; then the extreme of the two results
    all.next_instruction();
    all.repeats(1);
    all.store_by_scalar(results);
  }
}

// The two forms of an API: the first `count` elements, or repeats under a mask.
template <class T>
struct CountForm {
  const AscendC::LocalTensor<T>& src;
  int64_t count;

  Operand operand_of() const { return operand(src); }
  Extent extent(VectorCall& call) const { return call.counted(kRepeatBytes / sizeof(T), count); }
  bool tail() const { return count > int64_t{kRepeatBytes / sizeof(T)} && count % (kRepeatBytes / sizeof(T)); }
};

template <class T>
struct MaskForm {
  const AscendC::LocalTensor<T>& src;
  MaskArgument mask;
  int32_t repeats;
  int32_t stride;

  Operand operand_of() const {
    Operand from = operand(src);
    from.repeat_stride = static_cast<uint32_t>(stride);
    return from;
  }
  Extent extent(VectorCall& call) const {
    call.require_range(Rule::stride_limit, "srcRepStride", stride, UINT16_MAX);
    Extent extent = call.masked(kRepeatBytes / sizeof(T), mask, 1);
    extent.repeats = static_cast<uint32_t>(std::max(repeats, 0));  // in as many instructions as needed
    return extent;
  }
  bool tail() const { return false; }
};

template <bool greatest, class T, class Form>
void reduce_to_extreme(const char* api, AscendC::Place place, const AscendC::LocalTensor<T>& dst,
                       const AscendC::LocalTensor<T>& work, const Form& form, bool with_index) {
  ReduceAll<T> all(api, place, dst, work, with_index ? 2 : 1);
  if constexpr (!Floats::has<T>) {
    all.call.wrong_type();
  } else {
    const Extent extent = form.extent(all.call);
    if (extent.repeats) reduce_extreme<greatest>(all, form.operand_of(), extent, form.tail(), with_index);
    all.call.core.mask = kLostMask;
  }
}

// Adds one repeat after the other to an accumulator; the work tensor is unused.
template <class T>
void sum_in_sequence(ReduceAll<T>& all, const Operand& src, const Extent& extent) {
  all.judge(src, extent, 0);
  SourceRepeats<T> source(all.call.core, extent, src, 0);
  T sum = tree_sum<ReduceAll<T>::kLanes>(source.lanes(0));
  for (uint32_t repeat = 1; repeat < extent.repeats; ++repeat)
    sum = narrow<T>(widen(sum) + widen(tree_sum<ReduceAll<T>::kLanes>(source.lanes(repeat))));
  all.call.work(extent.repeats);
  all.store_by_scalar(&sum);
}

// Sums each repeat, then repeats of these sums, until one sum is left.
template <class T>
void sum_in_passes(ReduceAll<T>& all, const Operand& src, const Extent& extent) {
  constexpr uint32_t lanes = ReduceAll<T>::kLanes;
  const uint64_t partial = (uint64_t{extent.repeats} * sizeof(T) + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
  all.judge(src, extent, partial);
  SourceRepeats<T> source(all.call.core, extent, src, 0);
  std::vector<T> sums(extent.repeats);
  for (uint32_t repeat = 0; repeat < extent.repeats; ++repeat) sums[repeat] = tree_sum<lanes>(source.lanes(repeat));
  all.repeats(extent.repeats);
  all.partial_results(partial);
  while (sums.size() > 1) {
    all.barrier();
    all.next_instruction();
    const size_t repeats = (sums.size() + lanes - 1) / lanes;
    sums.resize(repeats * lanes, narrow<T>(0));
    for (size_t repeat = 0; repeat < repeats; ++repeat) sums[repeat] = tree_sum<lanes>(sums.data() + repeat * lanes);
    sums.resize(repeats);
    all.repeats(repeats);
  }
  extent.repeats > lanes ? all.store_by_vector(sums.data()) : all.store_by_scalar(sums.data());
}

}  // namespace virtual_cann::api

#define VIRTUAL_CANN_REDUCE_ALL(Name, greatest)                                                          \
  template <typename T>                                                                                  \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, \
            const int32_t count, bool calIndex = false, Place place = Place::here()) {                   \
    using namespace virtual_cann::api;                                                                   \
    reduce_to_extreme<greatest>(#Name, place, dst, sharedTmpBuffer, CountForm<T>{src, count}, calIndex); \
  }                                                                                                      \
  template <typename T>                                                                                  \
  void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer, \
            virtual_cann::api::MaskArgument mask, const int32_t repeatTime, const int32_t srcRepStride,  \
            bool calIndex = false, Place place = Place::here()) {                                        \
    using namespace virtual_cann::api;                                                                   \
    const MaskForm<T> form{src, mask, repeatTime, srcRepStride};                                         \
    reduce_to_extreme<greatest>(#Name, place, dst, sharedTmpBuffer, form, calIndex);                     \
  }

namespace AscendC {

VIRTUAL_CANN_REDUCE_ALL(ReduceMax, true)
VIRTUAL_CANN_REDUCE_ALL(ReduceMin, false)

template <typename T, bool isSetMask = true>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
               const int32_t count, Place place = Place::here()) {
  using namespace virtual_cann::api;
  ReduceAll<T> all("ReduceSum", place, dst, sharedTmpBuffer, 1);
  if constexpr (!Floats::has<T>) {
    all.call.wrong_type();
  } else {
    const Extent extent = Count{count}.extent<isSetMask>(all.call, kRepeatBytes / sizeof(T));
    if (extent.repeats) sum_in_sequence(all, operand(src), extent);
  }
}

template <typename T>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
               virtual_cann::api::MaskArgument mask, const int32_t repeatTime, const int32_t srcRepStride,
               Place place = Place::here()) {
  using namespace virtual_cann::api;
  ReduceAll<T> all("ReduceSum", place, dst, sharedTmpBuffer, 1);
  if constexpr (!Floats::has<T>) {
    all.call.wrong_type();
  } else {
    const MaskForm<T> form{src, mask, repeatTime, srcRepStride};
    const Extent extent = form.extent(all.call);
    if (extent.repeats) sum_in_passes(all, form.operand_of(), extent);
    all.call.core.mask = kLostMask;
  }
}

}  // namespace AscendC

#undef VIRTUAL_CANN_REDUCE_ALL
