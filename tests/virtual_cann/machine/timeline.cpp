// SPDX-License-Identifier: Apache-2.0
#include "timeline.h"

#include <algorithm>

namespace virtual_cann {

namespace {

constexpr double kGuesses[kEstimates] = {1, 2, 0.5};  // of a cost: half the rate is twice the cost

}  // namespace

Timeline::Timeline(const Hardware& hardware, uint32_t running, double guess)
    : hertz_(hardware.hertz), l2_bytes_(static_cast<double>(hardware.l2_bytes)), running_(running), guess_(guess) {}

double Timeline::dma_rate(const Rate& memory) const { return std::min(kDma.value, memory.value / hertz_ / running_); }

void Timeline::issue(Pipe pipe) {
  work(Pipe::S, cost(kIssue));
  wait(pipe, at(Pipe::S));
}

void Timeline::vector_work(VectorClass kind, uint64_t repeats, uint64_t conflicts) {
  const Cycles of_repeats = cost(kVector[static_cast<size_t>(kind)]) * static_cast<double>(repeats);
  work(Pipe::V, cost(kVectorStart) + of_repeats + cost(kBankConflict) * static_cast<double>(conflicts));
}

void Timeline::transfer(Pipe pipe, uint64_t count, bool through_l2) {
  const auto bytes = static_cast<double>(count);
  const Cycles start = at(pipe);
  double of_hbm = 1;
  if (pipe == Pipe::MTE2) {
    read_ += bytes;
    if (through_l2) read_through_l2_ += bytes;
    // Reads in a row hide each other's latency; the first after a pause shows it.
    if (start > last_read_end_) busy(pipe) += cost(kReadLatency);
    at(pipe) += bytes / dma_rate(kHbm);
  } else {
    written_ += bytes;
    at(pipe) += bytes / dma_rate(kReadAndWrite);
    // The L2 takes up what is written as long as it has room and reads do not pass through it too (README cases 4, 6).
    if (written_ * running_ <= l2_bytes_) of_hbm = read_ > 0 ? read_through_l2_ / read_ : 0;
  }
  wait(pipe, hbm_.pass(start, of_hbm * bytes / (kHbm.value / hertz_ / running_)));
  busy(pipe) += at(pipe) - start;
  if (pipe == Pipe::MTE2) last_read_end_ = at(pipe);
}

void Timeline::scalar_access(bool cache_miss) { work(Pipe::S, cost(cache_miss ? kCacheMiss : kScalarAccess)); }

Cycles Timeline::over(Pipe pipe) const {
  return time_[static_cast<size_t>(pipe)] + (pipe == Pipe::MTE2 ? cost(kReadLatency) : 0);
}

Cycles Timeline::all_over() const {
  Cycles last = std::max(over(Pipe::S), hbm_.over());
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
  for (double factor : kGuesses) timelines_.emplace_back(hardware, running, factor);
}

Moments Timelines::over(Pipe pipe) const {
  Moments moments;
  for (int i = 0; i < kEstimates; ++i) moments[i] = timelines_[i].over(pipe);
  return moments;
}

Moments Timelines::all_over() const {
  Moments moments;
  for (int i = 0; i < kEstimates; ++i) moments[i] = timelines_[i].all_over();
  return moments;
}

void Timelines::wait(Pipe pipe, const Moments& until) {
  for (int i = 0; i < kEstimates; ++i) timelines_[i].wait(pipe, until[i]);
}

void Timelines::wait_all(const Moments& until) {
  for (int i = 0; i < kEstimates; ++i) timelines_[i].wait_all(until[i]);
}

}  // namespace virtual_cann
