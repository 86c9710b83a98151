// SPDX-License-Identifier: Apache-2.0
// What the kernels are asked to do, in plain pointers and sizes. Nothing here or under cpu/kernels/ knows torch, so the
// same files build for a cross compiler, an emulator or a sanitizer.
#pragma once

#include <cstdint>

namespace npu_ce {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// The values are those of the operators' schemas.
enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

// Runs body over [begin, end) in pieces of at least `grain`, on any number of threads, and returns when all are done.
struct Parallel {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  void (*run)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);
  int64_t threads;
};

// One value per row: a vector of any stride, or one element for all rows (stride 0). Absent when data is null.
struct RowValues {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t stride_elems = 0;
};

struct Targets {
  const void* data;
  bool is_int64;
  int64_t stride_elems;

  int64_t operator[](int64_t row) const {
    return is_int64 ? static_cast<const int64_t*>(data)[row * stride_elems]
                    : static_cast<const int32_t*>(data)[row * stride_elems];
  }
};

// The memory layout of the logits. A row is one position of an image; rows are numbered image by image. In [N, C] each
// row is an image of one position, and its classes are contiguous. In [N, C, L] positions are contiguous; a class is a
// plane.
struct Layout {
  int64_t positions;  // of an image; they are contiguous
  int64_t image_stride_elems;
  int64_t class_stride_elems;

  bool is_planar() const { return positions != 1 || class_stride_elems != 1; }
};

// `acc` below is float64 for float64 input and float32 for all other dtypes. Every target is in [0, classes) or
// ignored.
struct Problem {
  Dtype dtype;
  int64_t rows;
  int64_t classes;
  const void* input;
  Layout layout;
  Targets target;
  const void* weight;  // acc [classes], or null
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;
  double z_loss;
  double softcap;  // 0 means none
  double logit_scale;
};

// Null means not asked for. Everything is contiguous.
struct ForwardOutputs {
  void* loss;    // loss_dtype, [rows] or one element
  void* z_loss;  // as loss
  Dtype loss_dtype;
  void* log_prob;      // the input's dtype, [rows, classes]; not of a planar input
  void* lse;           // acc [rows]
  int64_t* argmax;     // [rows]
  void* entropy;       // acc [rows]
  void* row_stats;     // acc [2, rows]: max, then the log of the sum of exp(x' - max)
  void* denominators;  // acc [2]: sum of weight[target] over rows not ignored, and their count
};

struct Gradients {
  RowValues loss;
  RowValues z_loss;
  RowValues lse;
  RowValues entropy;
  const void* log_prob;  // the input's dtype, column stride 1, or null; not of a planar input
  int64_t log_prob_stride_elems;
  RowValues entropy_value;  // forward's entropy; present when the gradient of entropy is
  const void* row_stats;
  const void* denominators;
  // Output, contiguous: [rows, classes], or [images, classes, positions] for a planar input. It may be Problem::input
  // itself.
  void* input;
};

void forward(const Problem& problem, const ForwardOutputs& outputs, const Parallel& parallel);
void backward(const Problem& problem, const Gradients& gradients, const Parallel& parallel);

}  // namespace npu_ce
