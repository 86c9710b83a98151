# SPDX-License-Identifier: Apache-2.0
"""What a call refuses, how its errors are told, what memory it takes, and how it is traced."""

from __future__ import annotations

import torch_npu  # noqa: F401
from virtual_process import run

FIRST_CALL_ON_TWO_DEVICES = """
import torch, torch_npu, npu_ce_jit
forward = torch.ops.npu_ce_jit._forward
for x, target in ((torch.zeros(3, 5), torch.zeros(3).npu()), (torch.zeros(3, 5).npu(), torch.zeros(3))):
    try:
        forward(x, target.long(), None, 1, -100, 0.0, 0.0, 0.0, 1.0, 0, torch.float32)
    except RuntimeError as error:
        print(error)
"""


def test_tensors_on_two_devices_are_refused_by_the_very_first_call_too() -> None:
    done = run(FIRST_CALL_ON_TWO_DEVICES)
    first, second = done.stdout.splitlines()
    assert "expected input on an npu, got cpu" in first, done.stderr
    assert "expected target on input's device npu:0, got cpu" in second
