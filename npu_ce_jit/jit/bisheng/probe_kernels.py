# SPDX-License-Identifier: Apache-2.0
"""Two small units of Ascend C that stand for `ascendc/`: a compiler that takes them should take the kernels.

They use what releases of the compiler have differed in: two units in one library, a struct by value, several blocks,
templates of one name in both units, bfloat16 and int64, padded copies, flags between pipes, and conversion of integers
to float (bisheng refuses unsigned ones). They are compiled and opened, and never launched.
"""

# As in the kernels: a plain pointer cannot be cast to the address space `__gm__`, so it goes through an integer.
_COMMON = """\
#pragma once

#include "kernel_operator.h"

namespace npu_ce_probe {
using namespace AscendC;

template <class T>
__aicore__ inline GlobalTensor<T> InGm(const void* data, uint64_t elements) {
  GlobalTensor<T> tensor;
  tensor.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(reinterpret_cast<uint64_t>(data)), elements);
  return tensor;
}
}  // namespace npu_ce_probe
"""

_FILL = """\
#include "npu_ce_probe.h"

struct NpuCeProbeFill {
  float* out;
  uint64_t count;  // of each block
  uint32_t classes;
  float scale;
};

extern "C" __global__ NPU_CE_VECTOR __aicore__ void npu_ce_probe_fill_kernel(NpuCeProbeFill fill) {
  AscendC::TPipe pipe;
  AscendC::TQue<AscendC::QuePosition::VECOUT, 1> queue;
  pipe.InitBuffer(queue, 1, fill.count * sizeof(float));
  const uint64_t begin = fill.count * AscendC::GetBlockIdx();
  AscendC::LocalTensor<float> tile = queue.AllocTensor<float>();
  AscendC::Duplicate(tile, fill.scale / static_cast<float>(static_cast<int32_t>(fill.classes)), fill.count);
  queue.EnQue(tile);
  tile = queue.DeQue<float>();
  AscendC::DataCopyPad(npu_ce_probe::InGm<float>(fill.out, begin + fill.count)[begin], tile,
                       AscendC::DataCopyExtParams(1, fill.count * sizeof(float), 0, 0, 0));
  queue.FreeTensor(tile);
}

extern "C" int npu_ce_probe_fill(const NpuCeProbeFill* fill, uint32_t blocks, void* stream) {
  npu_ce_probe_fill_kernel<<<blocks, nullptr, stream>>>(*fill);
  return 0;
}
"""

# Each block adds its target, an int64, to 16 elements of type T.
_ADD = """\
#include "npu_ce_probe.h"

using namespace AscendC;

struct NpuCeProbeAdd {
  const void* in;
  const int64_t* targets;
  void* out;
};

template <class T>
class NpuCeProbeAdder {
 public:
  __aicore__ inline void Init(TPipe* pipe, const NpuCeProbeAdd& add) {
    add_ = add;
    pipe->InitBuffer(in_, 1, kCount * sizeof(T));
    pipe->InitBuffer(out_, 1, kCount * sizeof(T));
    pipe->InitBuffer(floats_, kCount * sizeof(float));
    in_gm_ = npu_ce_probe::InGm<T>(add.in, kCount * GetBlockNum());
    out_gm_ = npu_ce_probe::InGm<T>(add.out, kCount * GetBlockNum());
    targets_ = npu_ce_probe::InGm<int64_t>(add.targets, GetBlockNum());
  }

  __aicore__ inline void Process() {
    const uint64_t begin = kCount * GetBlockIdx();
    const int64_t target = targets_.GetValue(GetBlockIdx());
    LocalTensor<T> tile = in_.template AllocTensor<T>();
    DataCopyPadExtParams<T> padding;
    DataCopyPad(tile, in_gm_[begin], DataCopyExtParams(1, kCount * sizeof(T), 0, 0, 0), padding);
    in_.EnQue(tile);
    tile = in_.template DeQue<T>();
    const LocalTensor<float> floats = floats_.Get<float>();
    Cast(floats, tile, RoundMode::CAST_NONE, kCount);
    PipeBarrier<PIPE_V>();
    in_.FreeTensor(tile);
    Adds(floats, floats, static_cast<float>(static_cast<int32_t>(target)), kCount);
    PipeBarrier<PIPE_V>();
    LocalTensor<T> sums = out_.template AllocTensor<T>();
    Cast(sums, floats, RoundMode::CAST_RINT, kCount);
    out_.EnQue(sums);
    sums = out_.template DeQue<T>();
    DataCopyPad(out_gm_[begin], sums, DataCopyExtParams(1, kCount * sizeof(T), 0, 0, 0));
    out_.FreeTensor(sums);
  }

 private:
  static constexpr uint32_t kCount = 16;

  NpuCeProbeAdd add_;
  GlobalTensor<T> in_gm_, out_gm_;
  GlobalTensor<int64_t> targets_;
  TQue<QuePosition::VECIN, 1> in_;
  TQue<QuePosition::VECOUT, 1> out_;
  TBuf<QuePosition::VECCALC> floats_;
};

extern "C" __global__ NPU_CE_VECTOR __aicore__ void npu_ce_probe_add_float16(NpuCeProbeAdd add) {
  TPipe pipe;
  NpuCeProbeAdder<half> adder;
  adder.Init(&pipe, add);
  adder.Process();
}

extern "C" __global__ NPU_CE_VECTOR __aicore__ void npu_ce_probe_add_bfloat16(NpuCeProbeAdd add) {
  TPipe pipe;
  NpuCeProbeAdder<bfloat16_t> adder;
  adder.Init(&pipe, add);
  adder.Process();
}

extern "C" int npu_ce_probe_add(const NpuCeProbeAdd* add, int32_t bfloat16, uint32_t blocks, void* stream) {
  if (bfloat16 != 0) {
    npu_ce_probe_add_bfloat16<<<blocks, nullptr, stream>>>(*add);
  } else {
    npu_ce_probe_add_float16<<<blocks, nullptr, stream>>>(*add);
  }
  return 0;
}
"""

HEADER = ("npu_ce_probe.h", _COMMON)
UNITS = {"probe_fill.asc": _FILL, "probe_add.asc": _ADD}
LAUNCHERS = ("npu_ce_probe_fill", "npu_ce_probe_add")
