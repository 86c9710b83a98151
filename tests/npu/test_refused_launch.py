# SPDX-License-Identifier: Apache-2.0
"""A launch that the runtime refuses: what the host sees of it, with each generation's compiler."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch
from virtual_cann import kernels, observe
from virtual_cann.prepare import prepare

SOURCE = """#include "kernel_operator.h"
extern "C" __global__ __vector__ __aicore__ void touch(GM_ADDR x) {
  AscendC::GlobalTensor<int32_t> gm;
  gm.SetGlobalBuffer((__gm__ int32_t*)x, 16);
  gm.SetValue(0, gm.GetValue(0) + 1);
  AscendC::DataCacheCleanAndInvalid<int32_t, AscendC::CacheLine::SINGLE_CACHE_LINE>(gm);
}
extern "C" void launch(void* stream, void* x) { touch<<<1, nullptr, stream>>>((GM_ADDR)x); }
"""
PRINTED = r"\[ERROR\] \[AscPlugin\] Kernel: \[touch\] Stream: \[0x\w+\] BlockDim: \[1\] kernel launch failure!\n"


@pytest.fixture(scope="module", params=[8.5, 9.1])
def library(request, tmp_path_factory) -> tuple[float, ctypes.CDLL]:
    folder: Path = tmp_path_factory.mktemp("refused")
    (folder / "touch.asc").write_text(SOURCE)
    kernels.acl()
    bisheng = prepare(request.param).bisheng
    words = [bisheng, *kernels.MODES, "-shared", "-fPIC", "touch.asc", "-o", "touch.so"]
    subprocess.run(words, cwd=folder, check=True)
    return request.param, ctypes.CDLL(str(folder / "touch.so"))


def test_the_plugin_prints_a_refused_launch_and_leaves_nothing(library, capfd):
    generation, touch = library
    acl = kernels.acl()
    x = torch.zeros(16, dtype=torch.int32)
    stream = ctypes.c_void_p()
    kernels.check(acl.aclrtCreateStream(ctypes.byref(stream)))
    acl.aclrtGetLastError(0)
    with kernels.on_device(x) as x_gm:
        observe.set_faults("refuse=2")
        codes, synchronised = [], []
        for _ in range(3):
            touch.launch(stream, x_gm)
            codes.append(acl.aclrtPeekAtLastError(0))
            synchronised.append(acl.aclrtSynchronizeStream(stream))
        observe.set_faults("")
        ctypes.CDLL(None).fflush(None)
    acl.aclrtGetLastError(0)
    acl.aclrtDestroyStreamForce(stream)
    assert x[0] == 2, "two of three ran"
    said = capfd.readouterr().out
    if generation == 8.5:
        assert codes == synchronised == [0, 0, 0]
        assert "[ERROR] [AscPlugin] AscendKernelLaunchWithFlagV2 ret 507" in said
        assert re.search(PRINTED, said)
    else:
        assert codes[0] == synchronised[0] == 0
        assert codes[1] == synchronised[1] != 0
        assert said == ""
