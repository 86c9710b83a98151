// SPDX-License-Identifier: Apache-2.0
#include "timeline.h"

#include <algorithm>

namespace virtual_cann {

namespace {

constexpr size_t kHbm = rate_named("hbm"), kL2 = rate_named("l2"), kReadAndWrite = rate_named("read_and_write");
constexpr size_t kDma = rate_named("dma"), kDmaOfL2 = rate_named("dma_of_l2"), kShortCopy = rate_named("short_copy");
constexpr size_t kReadLatency = rate_named("read_latency");
constexpr size_t kVectorStart = rate_named("vector_start"), kBankConflict = rate_named("bank_conflict");
constexpr size_t kVector = rate_named("simple");
constexpr size_t kIssue = rate_named("issue"), kScalarAccess = rate_named("scalar_access");
constexpr size_t kCacheMiss = rate_named("cache_miss");

static_assert(kVector + static_cast<size_t>(VectorClass::copy) == rate_named("copy"), "in the order of VectorClass");

}  // namespace

Timeline::Timeline(const Hardware& hardware, uint32_t running, const Rates& rates, bool in_l2)
    : rates_(rates), l2_bytes_(static_cast<double>(hardware.l2_bytes)), running_(running) {
  const double dma = rates[in_l2 ? kDmaOfL2 : kDma];
  memory_ = (in_l2 ? rates[kL2] : rates[kHbm] * hardware.hbm_share) / hardware.hertz / running;
  reading_ = std::min(dma, memory_);
  writing_ = std::min(dma, rates[kReadAndWrite] / hardware.hertz / running);
}

void Timeline::issue(Pipe pipe) {
  work(Pipe::S, rates_[kIssue]);
  wait(pipe, at(Pipe::S));
}

void Timeline::vector_work(VectorClass kind, uint64_t repeats, uint64_t conflicts) {
  const Cycles of_repeats = rates_[kVector + static_cast<size_t>(kind)] * static_cast<double>(repeats);
  work(Pipe::V, rates_[kVectorStart] + of_repeats + rates_[kBankConflict] * static_cast<double>(conflicts));
}

void Timeline::transfer(Pipe pipe, uint64_t count, bool through_l2) {
  const auto bytes = static_cast<double>(count);
  const Cycles start = at(pipe);
  double of_memory = 1;
  if (pipe == Pipe::MTE2) {
    read_ += bytes;
    if (through_l2) read_through_l2_ += bytes;
    // Consecutive reads hide each other's latency; the first after a pause does not.
    if (start > last_read_end_) busy(pipe) += rates_[kReadLatency];
    at(pipe) += (bytes + rates_[kShortCopy]) / reading_;
  } else {
    written_ += bytes;
    at(pipe) += (bytes + rates_[kShortCopy]) / writing_;
    // The L2 absorbs writes while it has room and reads bypass it (README cases 4 and 6).
    if (written_ * running_ <= l2_bytes_) of_memory = read_ > 0 ? read_through_l2_ / read_ : 0;
  }
  wait(pipe, memory_share_.pass(start, of_memory * bytes / memory_));
  busy(pipe) += at(pipe) - start;
  if (pipe == Pipe::MTE2) last_read_end_ = at(pipe);
}

void Timeline::scalar_access(bool cache_miss) { work(Pipe::S, rates_[cache_miss ? kCacheMiss : kScalarAccess]); }

Cycles Timeline::over(Pipe pipe) const {
  return time_[static_cast<size_t>(pipe)] + (pipe == Pipe::MTE2 ? rates_[kReadLatency] : 0);
}

Cycles Timeline::all_over() const {
  Cycles last = std::max(over(Pipe::S), memory_share_.over());
  for (Pipe pipe : {Pipe::V, Pipe::MTE2, Pipe::MTE3}) last = std::max(last, over(pipe));
  return last;
}

void Timeline::wait(Pipe pipe, Cycles until) { at(pipe) = std::max(at(pipe), until); }

void Timeline::wait_all(Cycles until) {
  for (Pipe pipe : {Pipe::S, Pipe::V, Pipe::MTE2, Pipe::MTE3}) wait(pipe, until);
}

void Timeline::work(Pipe pipe, Cycles cycles) {
  at(pipe) += cycles;
  busy(pipe) += cycles;
}

Timelines::Timelines(const Hardware& hardware, uint32_t running) {
  timelines_.reserve(kTimelines);
  for (const Assumption& assumption : assumptions()) {
    for (const bool in_l2 : {false, true}) timelines_.emplace_back(hardware, running, assumption.rates, in_l2);
  }
}

Moments Timelines::over(Pipe pipe) const {
  Moments moments;
  for (size_t i = 0; i < kTimelines; ++i) moments[i] = timelines_[i].over(pipe);
  return moments;
}

Moments Timelines::all_over() const {
  Moments moments;
  for (size_t i = 0; i < kTimelines; ++i) moments[i] = timelines_[i].all_over();
  return moments;
}

std::array<Moments, kPipes> Timelines::busy() const {
  std::array<Moments, kPipes> busy;
  for (int pipe = 0; pipe < kPipes; ++pipe)
    for (size_t i = 0; i < kTimelines; ++i) busy[pipe][i] = timelines_[i].busy()[pipe];
  return busy;
}

void Timelines::wait(Pipe pipe, const Moments& until) {
  for (size_t i = 0; i < kTimelines; ++i) timelines_[i].wait(pipe, until[i]);
}

void Timelines::wait_all(const Moments& until) {
  for (size_t i = 0; i < kTimelines; ++i) timelines_[i].wait_all(until[i]);
}

}  // namespace virtual_cann
