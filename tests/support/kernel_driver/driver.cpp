// SPDX-License-Identifier: Apache-2.0
// Runs the CPU kernels without torch: reads problems from stdin until its end, and writes each one's outputs to stdout.
//
// A problem is a Header, then input, target, weight and the present gradients in the order of Header's bits. Its answer
// is loss, z_loss, log_prob, lse, argmax, entropy, row_stats, denominators (as far as requested) and the input's
// gradient.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "problem.h"

namespace {

struct Header {
  int64_t dtype, loss_dtype, rows, classes;
  int64_t positions, image_stride_elems, class_stride_elems;  // of the input
  int64_t target_is_int64, target_stride_elems, has_weight;
  int64_t reduction, ignore_index;
  int64_t outputs;               // 1 z_loss, 2 log_prob, 4 lse, 8 argmax, 16 entropy
  int64_t gradients;             // present: 1 loss, 2 z_loss, 4 lse, 8 entropy, 16 log_prob
  int64_t of_loss_stride_elems;  // for the gradients of loss and z_loss, which have loss_dtype
  int64_t of_row_stride_elems;   // for those of lse and entropy, which have the accumulation dtype
  int64_t of_log_prob_stride_elems;
  int64_t in_place;
  int64_t input_offset_elems;  // from the aligned beginning of the allocation
  int64_t threads;
  double label_smoothing, z_loss, softcap, logit_scale;
};

int64_t thread_count = 1;

void run_threads(int64_t begin, int64_t end, int64_t grain, npu_ce::Parallel::Body body, void* context) {
  const int64_t pieces = std::min(thread_count, (end - begin + grain - 1) / grain);
  const auto run_piece = [=](int64_t i) {
    body(begin + (end - begin) * i / pieces, begin + (end - begin) * (i + 1) / pieces, context);
  };
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < pieces; ++i) threads.emplace_back(run_piece, i);
  // One piece on this thread, so that a profiler of one thread sees all of a serial run.
  if (pieces > 0) run_piece(0);
  for (std::thread& thread : threads) thread.join();
}

int64_t elem_bytes(int64_t dtype) {
  switch (static_cast<npu_ce::Dtype>(dtype)) {
    case npu_ce::Dtype::kFloat64:
      return 8;
    case npu_ce::Dtype::kFloat32:
      return 4;
    default:
      return 2;
  }
}

// Ends exactly after `bytes` (1 for 0), so that a sanitizer sees an access behind the end.
class Buffer {
 public:
  explicit Buffer(int64_t bytes, int64_t offset_bytes = 0)
      : bytes_(static_cast<size_t>(bytes)),
        allocation_(std::malloc(static_cast<size_t>(offset_bytes + std::max<int64_t>(bytes, 1)))),
        data_(static_cast<char*>(allocation_) + offset_bytes) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(allocation_); }

  void* get() const { return data_; }
  void* get_if(bool wanted) const { return wanted ? data_ : nullptr; }
  void read() {
    if (std::fread(data_, 1, bytes_, stdin) != bytes_) std::exit(2);
  }
  void write() const {
    if (std::fwrite(data_, 1, bytes_, stdout) != bytes_) std::exit(3);
  }

 private:
  size_t bytes_;
  void* allocation_;
  void* data_;
};

void solve(const Header& header) {
  const int64_t rows = header.rows;
  const auto strided = [rows](int64_t stride) { return rows == 0 ? 0 : (rows - 1) * stride + 1; };
  const int64_t acc_bytes = header.dtype == static_cast<int64_t>(npu_ce::Dtype::kFloat64) ? 8 : 4;
  const auto acc_dtype = acc_bytes == 8 ? npu_ce::Dtype::kFloat64 : npu_ce::Dtype::kFloat32;
  const int64_t input_bytes = elem_bytes(header.dtype);
  const int64_t logits_bytes = rows * header.classes * input_bytes;
  const auto has = [](int64_t bits, int64_t bit) { return (bits & bit) != 0; };
  const auto matrix_bytes = [&](int64_t stride) {
    return (rows == 0 ? 0 : (rows - 1) * stride + header.classes) * input_bytes;
  };

  const npu_ce::Layout layout{header.positions, header.image_stride_elems, header.class_stride_elems};
  const int64_t last = rows == 0 ? -1
                                 : (rows / layout.positions - 1) * layout.image_stride_elems +
                                       (header.classes - 1) * layout.class_stride_elems + layout.positions - 1;
  Buffer input((last + 1) * input_bytes, header.input_offset_elems * input_bytes);
  Buffer target(strided(header.target_stride_elems) * (header.target_is_int64 ? 8 : 4));
  Buffer weight(header.has_weight ? header.classes * acc_bytes : 0);
  const auto vector_bytes = [&](int64_t bit, int64_t stride, int64_t bytes) {
    return has(header.gradients, bit) ? strided(stride) * bytes : 0;
  };
  const int64_t loss_elem_bytes = elem_bytes(header.loss_dtype);
  Buffer grad_loss(vector_bytes(1, header.of_loss_stride_elems, loss_elem_bytes));
  Buffer grad_z_loss(vector_bytes(2, header.of_loss_stride_elems, loss_elem_bytes));
  Buffer grad_lse(vector_bytes(4, header.of_row_stride_elems, acc_bytes));
  Buffer grad_entropy(vector_bytes(8, header.of_row_stride_elems, acc_bytes));
  Buffer grad_log_prob(has(header.gradients, 16) ? matrix_bytes(header.of_log_prob_stride_elems) : 0);
  for (Buffer* buffer :
       {&input, &target, &weight, &grad_loss, &grad_z_loss, &grad_lse, &grad_entropy, &grad_log_prob}) {
    buffer->read();
  }

  npu_ce::Problem problem{};
  problem.dtype = static_cast<npu_ce::Dtype>(header.dtype);
  problem.rows = rows;
  problem.classes = header.classes;
  problem.input = input.get();
  problem.layout = layout;
  problem.target = {target.get(), header.target_is_int64 != 0, header.target_stride_elems};
  problem.weight = weight.get_if(header.has_weight != 0);
  problem.reduction = static_cast<npu_ce::Reduction>(header.reduction);
  problem.ignore_index = header.ignore_index;
  problem.label_smoothing = header.label_smoothing;
  problem.z_loss = header.z_loss;
  problem.softcap = header.softcap;
  problem.logit_scale = header.logit_scale;
  const npu_ce::Parallel parallel{run_threads, header.threads};
  thread_count = header.threads;

  const bool per_row = problem.reduction == npu_ce::Reduction::kNone;
  const int64_t loss_bytes = (per_row ? rows : 1) * loss_elem_bytes;
  Buffer loss(loss_bytes);
  Buffer z_loss(has(header.outputs, 1) ? loss_bytes : 0);
  Buffer log_prob(has(header.outputs, 2) ? logits_bytes : 0);
  Buffer lse(has(header.outputs, 4) ? rows * acc_bytes : 0);
  Buffer argmax(has(header.outputs, 8) ? rows * 8 : 0);
  Buffer entropy(has(header.outputs, 16) ? rows * acc_bytes : 0);
  Buffer row_stats(2 * rows * acc_bytes);
  Buffer denominators(2 * acc_bytes);
  npu_ce::ForwardOutputs out{};
  out.loss = loss.get();
  out.loss_dtype = static_cast<npu_ce::Dtype>(header.loss_dtype);
  out.z_loss = z_loss.get_if(has(header.outputs, 1));
  out.log_prob = log_prob.get_if(has(header.outputs, 2));
  out.lse = lse.get_if(has(header.outputs, 4));
  out.argmax = static_cast<int64_t*>(argmax.get_if(has(header.outputs, 8)));
  out.entropy = entropy.get_if(has(header.outputs, 16));
  out.row_stats = row_stats.get();
  out.denominators = denominators.get();
  npu_ce::forward(problem, out, parallel);
  for (const Buffer* buffer : {&loss, &z_loss, &log_prob, &lse, &argmax, &entropy, &row_stats, &denominators}) {
    buffer->write();
  }

  const auto of_loss = [&](const Buffer& buffer, int64_t bit) -> npu_ce::RowValues {
    return {buffer.get_if(has(header.gradients, bit)), out.loss_dtype, header.of_loss_stride_elems};
  };
  const auto of_row = [&](const Buffer& buffer, int64_t bit) -> npu_ce::RowValues {
    return {buffer.get_if(has(header.gradients, bit)), acc_dtype, header.of_row_stride_elems};
  };
  Buffer fresh(header.in_place ? 0 : logits_bytes);
  npu_ce::Gradients gradients{};
  gradients.loss = of_loss(grad_loss, 1);
  gradients.z_loss = of_loss(grad_z_loss, 2);
  gradients.lse = of_row(grad_lse, 4);
  gradients.entropy = of_row(grad_entropy, 8);
  gradients.log_prob = grad_log_prob.get_if(has(header.gradients, 16));
  gradients.log_prob_stride_elems = header.of_log_prob_stride_elems;
  gradients.entropy_value = {entropy.get_if(has(header.gradients, 8)), acc_dtype, 1};
  gradients.row_stats = row_stats.get();
  gradients.denominators = denominators.get();
  gradients.input = header.in_place ? input.get() : fresh.get();
  npu_ce::backward(problem, gradients, parallel);
  (header.in_place ? input : fresh).write();
}

}  // namespace

int main() {
  Header header;
  while (std::fread(&header, sizeof(header), 1, stdin) == 1) {
    solve(header);
    std::fflush(stdout);  // so that the reader knows at which problem a sanitizer stopped
  }
  return 0;
}
