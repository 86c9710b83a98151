# SPDX-License-Identifier: Apache-2.0
"""Messages for launches and allocations that fail on torch_npu's streams; the next call works."""

from __future__ import annotations

import re

import pytest
import torch
from launch_hook import run_hooked
from loss_on_npu import assert_right, loss_and_gradient, whole_device
from shapes import logits, targets
from virtual_cann import observe
from virtual_process import run

from npu_ce_jit import cross_entropy, npu_cross_entropy_loss

__all__ = ["whole_device"]  # a fixture


def test_a_kernel_that_fails_is_told_at_the_synchronise(device: torch.device) -> None:
    x, target = logits(4, 70, torch.float32).to(device), targets(4, 70).to(device)
    cross_entropy(x, target)
    torch.npu.synchronize()
    observe.set_faults("launch=1")
    cross_entropy(x, target)
    with pytest.raises(RuntimeError, match=r"(?s)507035.*kernel npu_ce_forward"):
        torch.npu.synchronize()
    observe.set_faults("")
    observe.clear_errors()
    assert_right(loss_and_gradient(x, target), x.cpu(), target.cpu())


def test_memory_that_is_not_there_is_torchs_error_and_the_next_call_works(device: torch.device) -> None:
    x, target = logits(4096, 4096, torch.bfloat16).to(device), targets(4096, 4096).to(device)
    torch.npu.synchronize()
    torch.npu.empty_cache()
    observe.set_faults("malloc=1")
    with pytest.raises(torch.OutOfMemoryError, match="NPU out of memory"):
        npu_cross_entropy_loss(x, target)
    observe.set_faults("")
    assert cross_entropy(x[:4], target[:4]).cpu().isfinite()


LOST = """
import torch, torch_npu, npu_ce_jit
from virtual_cann import observe
x, target = torch.zeros(4, 5).npu(), torch.zeros(4, dtype=torch.int64).npu()
npu_ce_jit.cross_entropy(x, target)
there = x.to("npu:1"), target.to("npu:1")
torch.npu.synchronize()
observe.set_faults("lost=1")
x.add_(1)
try:
    for _ in range(3):
        npu_ce_jit.cross_entropy(x, target)
    torch.npu.synchronize()
except RuntimeError as error:
    print(str(error).replace("\\n", " "))
observe.set_faults("")
print(npu_ce_jit.cross_entropy(*there).item())
"""


@pytest.mark.parametrize("queue", ["0", "1"])
def test_a_lost_device_is_told_and_the_other_one_works(queue: str) -> None:
    done = run(LOST, TASK_QUEUE_ENABLE=queue)
    first, second = done.stdout.splitlines()
    # In the queue's thread, torch_npu prints the error to stderr, with the text that ACL gives once.
    ours = [line for line in done.stderr.splitlines() if "npu_ce_jit::_forward: expected" in line]
    assert re.search("507010.*device 0 is lost", "\n".join([first, *ours])), done.stderr
    assert float(second) == pytest.approx(1.609438), done.stderr


EARLIER = """
import torch, torch_npu, npu_ce_jit, acl
x, target = torch.zeros(4, 5).npu(), torch.zeros(4, dtype=torch.int64).npu()
assert acl.library.aclrtDestroyStream(12345) != 0
earlier = acl.library.aclrtPeekAtLastError(0)
loss = npu_ce_jit.cross_entropy(x.requires_grad_(), target)
loss.backward()
print(round(loss.item(), 4), earlier != 0, acl.library.aclrtPeekAtLastError(0) == earlier)
"""


def test_an_error_from_before_is_neither_ours_nor_taken_away() -> None:
    done = run(EARLIER, TASK_QUEUE_ENABLE="0")  # so that the launch is made in the calling thread
    assert done.stdout.split() == ["1.6094", "True", "True"], done.stderr


DROPPED = """
x, target = torch.zeros(4, 5).npu(), torch.zeros(4, dtype=torch.int64).npu()
for _ in range(2):
    npu_ce_jit.cross_entropy(x, target).cpu()
hook.hook_drop(True)
try:
    npu_ce_jit.cross_entropy(x, target)
    torch.npu.synchronize()
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("queue", ["0", "1"])
def test_a_launch_that_does_nothing_and_leaves_no_error_is_told(queue: str) -> None:
    done = run_hooked(DROPPED, TASK_QUEUE_ENABLE=queue)
    said = done.stdout if queue == "0" else done.stderr  # in the queue's thread, torch_npu prints the error to stderr
    assert "npu_ce_jit::_forward: expected its kernels to be launched, got nothing on its stream" in said


NO_ROWS = """
x = torch.zeros(0, 5).npu().requires_grad_()
for reduction in ("sum", "none"):
    npu_ce_jit.cross_entropy(x, torch.zeros(0, dtype=torch.int64).npu(), reduction=reduction).sum().backward()
torch.npu.synchronize()
print(list(x.grad.shape))
"""


def test_a_call_that_has_nothing_to_launch_is_none_of_these() -> None:
    assert run_hooked(NO_ROWS, TASK_QUEUE_ENABLE="0").stdout.split() == ["[0,", "5]"]
