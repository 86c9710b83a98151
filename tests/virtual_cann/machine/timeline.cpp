// SPDX-License-Identifier: Apache-2.0
#include "timeline.h"

#include <algorithm>

namespace virtual_cann {

namespace {

constexpr double kGuesses[kEstimates] = {1, 2, 0.5};  // of a cost: half the rate is twice the cost

}  // namespace

Timeline::Timeline(const Hardware& hardware, uint32_t running, double guess) : guess_(guess) {
  const auto share = [&](const Rate& rate) { return std::min(kDma.value, rate.value / hardware.hertz / running); };
  bytes_a_cycle_[static_cast<size_t>(Pipe::MTE2)] = share(kHbm);
  bytes_a_cycle_[static_cast<size_t>(Pipe::MTE3)] = share(kReadAndWrite);
}

void Timeline::issue(Pipe pipe) {
  work(Pipe::S, cost(kIssue));
  wait(pipe, at(Pipe::S));
}

void Timeline::vector_work(VectorClass kind, uint64_t repeats, bool bank_conflict) {
  const double repeat = cost(kVector[static_cast<size_t>(kind)]) + (bank_conflict ? cost(kBankConflict) : 0);
  work(Pipe::V, cost(kVectorStart) + repeat * static_cast<double>(repeats));
}

void Timeline::transfer(Pipe pipe, uint64_t bytes) {
  const auto i = static_cast<size_t>(pipe);
  // Reads in a row hide each other's latency; the first after a pause shows it.
  if (pipe == Pipe::MTE2 && time_[i] > last_read_end_) busy_[i] += cost(kReadLatency);
  work(pipe, static_cast<double>(bytes) / bytes_a_cycle_[i]);
  if (pipe == Pipe::MTE2) last_read_end_ = time_[i];
}

void Timeline::scalar_access(bool cache_miss) { work(Pipe::S, cost(cache_miss ? kCacheMiss : kScalarAccess)); }

Cycles Timeline::over(Pipe pipe) const {
  return time_[static_cast<size_t>(pipe)] + (pipe == Pipe::MTE2 ? cost(kReadLatency) : 0);
}

Cycles Timeline::all_over() const {
  Cycles last = over(Pipe::S);
  for (Pipe pipe : {Pipe::V, Pipe::MTE2, Pipe::MTE3}) last = std::max(last, over(pipe));
  return last;
}

void Timeline::wait(Pipe pipe, Cycles until) { at(pipe) = std::max(at(pipe), until); }

void Timeline::wait_all(Cycles until) {
  for (Pipe pipe : {Pipe::S, Pipe::V, Pipe::MTE2, Pipe::MTE3}) wait(pipe, until);
}

void Timeline::work(Pipe pipe, Cycles cycles) {
  at(pipe) += cycles;
  busy_[static_cast<size_t>(pipe)] += cycles;
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
