# SPDX-License-Identifier: Apache-2.0
"""Which kernel runs where no library has one."""

from __future__ import annotations

from pathlib import Path

import torch_processes
from probes import fresh_environment
from torch_features import needs_fake_npu

# An npu tensor without torch_npu: it has the PrivateUse1 key and no storage.
ON_NPU = """
import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
_setup_privateuseone_for_python_backend("npu")
import npu_ce_jit

class NpuTensor(torch.Tensor):
    @staticmethod
    def __new__(cls, shape, dtype):
        tensor = torch._C._acc.create_empty_tensor(shape, dtype)
        tensor.__class__ = cls
        return tensor

x, target = NpuTensor((3, 5), torch.float32), NpuTensor((3,), torch.int64)
def forward(x, target):
    torch.ops.npu_ce_jit._forward(x, target, None, 1, -100, 0.0, 0.0, 0.0, 1.0, 0, torch.float32)

for call in (npu_ce_jit.cross_entropy, forward):
    try:
        call(x, target)
    except NotImplementedError as error:
        print(error)
for mixed in ((torch.ones(3, 5), target), (x, torch.ones(3, dtype=torch.int64))):
    try:
        forward(*mixed)
    except NotImplementedError as error:
        print(error)
"""

LAZY_WITH_THREADS = """
import threading, torch, npu_ce_jit
import npu_ce_jit.op.registration as registration

loads = []
lock = threading.Lock()

def load(device):
    assert device.type == "cpu"
    with lock:
        loads.append(1)
    return False

registration.use_loader(load)
x, target = torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
results = []
threads = [threading.Thread(target=lambda: results.append(npu_ce_jit.cross_entropy(x, target))) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
expected = torch.nn.functional.cross_entropy(x, target)
assert len(results) == 8 and all(torch.allclose(r, expected) for r in results)
assert loads, "the first call did not ask for a library"
"""


def run(code: str, cache_dir: Path) -> str:
    environment = fresh_environment(cache_dir) | {"NPU_CE_JIT_BUILD": "never"}
    done = torch_processes.start(code, environment).wait()
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_fake_npu
def test_an_npu_tensor_is_refused_with_the_cure(tmp_path: Path) -> None:
    lines = run(ON_NPU, tmp_path).splitlines()
    assert len(lines) == 4, "the internal operator refuses too, and whichever of its tensors is there"
    for said in lines:
        assert said.startswith("npu_ce_jit has no kernels for npu:0. No torch_npu")
        assert "pip install" in said


def test_threads_may_race_for_the_first_call(tmp_path: Path) -> None:
    run(LAZY_WITH_THREADS, tmp_path)
