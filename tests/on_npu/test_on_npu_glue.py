# SPDX-License-Identifier: Apache-2.0
"""The kernels on torch_npu's streams: order, devices, memory, and the state of a process before its first call."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401
from loss_on_npu import assert_right, loss_and_gradient, whole_device
from shapes import logits, targets
from torch import Tensor
from virtual_cann import observe
from virtual_process import run

from npu_ce_jit import cross_entropy

__all__ = ["whole_device"]  # a fixture


# Order


def test_a_kernel_sees_what_was_queued_before_it_and_is_seen_by_what_comes_after(device: torch.device) -> None:
    x, target = logits(6, 300, torch.float32), targets(6, 300)
    on_npu, there = torch.zeros(6, 300).to(device), target.to(device)
    cross_entropy(on_npu, there)  # the first call waits, for its self-check
    pinned = x.pin_memory()
    torch.npu.synchronize()
    observe.set_faults("slow=50ms")  # two seconds in all, much longer than the host's work here
    for _ in range(40):
        on_npu.add_(1)
    on_npu.copy_(pinned, non_blocking=True)
    loss, gradient = loss_and_gradient(on_npu, there)
    twice = gradient + gradient
    assert not torch.npu.current_stream().query(), "the call did not wait for the device"
    assert_right((loss, gradient), x, target)
    assert torch.equal(twice.cpu(), 2 * gradient.cpu())


def test_memory_that_is_given_back_at_once_is_used_again_in_order(device: torch.device) -> None:
    """Each call's workspace and outputs are freed while its kernels are still queued."""
    x, target = logits(16, 4096, torch.float32), targets(16, 4096)
    on_npu, there = x.to(device), target.to(device)
    first = loss_and_gradient(on_npu, there)
    observe.set_faults("slow=1ms")
    for _ in range(20):
        last = loss_and_gradient(on_npu, there)
    for a, b in zip(first, last, strict=True):
        assert torch.equal(a.cpu(), b.cpu())


def test_streams_and_devices(device: torch.device) -> None:
    observe.set_faults("slow=2ms")
    streams = [torch.npu.Stream(index) for index in (0, 1, 0, 1)]
    cases = [(logits(7 + i, 500, torch.float32), targets(7 + i, 500), stream) for i, stream in enumerate(streams)]
    results = []
    for x, target, stream in cases:
        with torch.npu.stream(stream):
            on_npu = x.to(stream.device, non_blocking=True).mul_(2)
            results.append(loss_and_gradient(on_npu, target.to(stream.device, non_blocking=True)))
    for (x, target, stream), result in zip(cases, results, strict=True):
        stream.synchronize()
        assert {part.device for part in result} == {stream.device}
        assert_right(result, 2 * x, target)


def test_a_device_that_is_not_the_current_one(device: torch.device) -> None:
    x, target = logits(5, 70, torch.float32), targets(5, 70)
    result = loss_and_gradient(x.to("npu:1"), target.to("npu:1"))
    assert torch.npu.current_device() == 0
    assert result[0].device == torch.device("npu:1")
    assert_right(result, x, target)


def test_threads(device: torch.device) -> None:
    cases = [(logits(9, 333, torch.float32), targets(9, 333)) for _ in range(4)]
    results: dict[int, tuple[Tensor, Tensor]] = {}

    def work(index: int) -> None:
        place = torch.device("npu", index % 2)
        with torch.npu.stream(torch.npu.Stream(place)):
            x, target = (tensor.to(place) for tensor in cases[index])
            for _ in range(5):
                loss, gradient = loss_and_gradient(x, target)
            results[index] = loss.cpu(), gradient.cpu()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, case in enumerate(cases):
        assert_right(results[index], *case)


# Tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("offset", [1, 5, 37])
def test_rows_that_begin_anywhere(dtype: torch.dtype, offset: int, device: torch.device) -> None:
    x, target = logits(6, 131, dtype), targets(6, 131)
    padded = torch.zeros(6 * 150 + offset, dtype=dtype).to(device)
    rows = padded[offset:].view(6, 150)[:, :131]
    rows.copy_(x)
    assert_right(loss_and_gradient(rows, target.to(device)), x, target)


@pytest.mark.parametrize("classes", [9, 3000])
def test_gradients_of_any_stride(classes: int, device: torch.device) -> None:
    x, target, spread = logits(12, classes, torch.float32), targets(12, classes), torch.rand(12, 3)
    leaf, true = x.to(device).requires_grad_(), x.clone().requires_grad_()
    cross_entropy(leaf, target.to(device), reduction="none").backward(spread.to(device)[:, 1])
    F.cross_entropy(true, target, reduction="none").backward(spread[:, 1])
    torch.testing.assert_close(leaf.grad.cpu(), true.grad)


def test_the_gradient_is_written_over_the_logits(device: torch.device) -> None:
    x, target = logits(33, 1000, torch.bfloat16), targets(33, 1000, 0.2)
    apart = x.to(device).requires_grad_()
    cross_entropy(apart, target.to(device)).backward()
    leaf = x.to(device).requires_grad_()
    loss = cross_entropy(leaf, target.to(device), inplace_backward=True)
    loss.backward()
    assert leaf.grad.data_ptr() == leaf.data_ptr()
    assert torch.equal(leaf.grad.cpu(), apart.grad.cpu())
    with pytest.raises(RuntimeError, match="got a second"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("classes", [5, 3000])
def test_a_target_out_of_range_makes_its_row_nan_and_reads_nothing(
    classes: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, target = logits(8, classes, torch.float32), targets(8, classes).to(dtype)
    wrong = [classes, -1, torch.iinfo(dtype).max, torch.iinfo(dtype).min]
    bad = target.clone()
    bad[[1, 3, 4, 6]] = torch.tensor(wrong, dtype=dtype)
    loss, gradient = loss_and_gradient(x.to(device), bad.to(device), reduction="none")
    good = torch.tensor([0, 2, 5, 7])
    assert loss.cpu().isnan().nonzero().flatten().tolist() == [1, 3, 4, 6]
    assert gradient.cpu()[[1, 3, 4, 6]].isnan().all()
    assert_right((loss.cpu()[good], gradient.cpu()[good]), x[good], target.long()[good], reduction="none")
    assert cross_entropy(x.to(device), bad.to(device)).cpu().isnan()
    assert all(not report["violations"] for report in observe.reports())


# Processes

LIMITED = """
import torch, torch_npu, npu_ce_jit
from virtual_cann import observe
def compute():
    torch.manual_seed(0)
    observe.clear_reports()
    for rows, classes in ((300, 100), (210, 2051)):
        x, target = torch.randn(rows, classes).npu().requires_grad_(), torch.randint(classes, (rows,)).npu()
        output = npu_ce_jit.cross_entropy(x, target, return_lse=True)
        (output.loss + output.lse.sum()).backward()
        yield from (output.loss.detach().cpu(), output.lse.detach().cpu(), x.grad.cpu())
    print(max(report["blocks"] for report in observe.reports()))
free = list(compute())
torch.npu.set_device_limit(0, vector_num=9)
list(compute())
torch.npu.set_stream_limit(torch.npu.current_stream(), vector_num=7)
limited = list(compute())
print(all(torch.equal(a, b) for a, b in zip(free, limited, strict=True)))
torch.npu.reset_stream_limit(torch.npu.current_stream())
list(compute())
"""


def test_no_launch_has_more_blocks_than_the_stream_may_use_cores_and_the_bits_are_the_same() -> None:
    free, of_device, of_stream, same, after = run(LIMITED).stdout.split()
    assert int(free) > 9
    assert (of_device, of_stream, same, after) == ("9", "7", "True", "9")


COMPUTE = """
import hashlib, torch, torch_npu, npu_ce_jit
torch.manual_seed(0)
digest = hashlib.sha256()
for rows, classes in ((1, 1), (9, 7), (70, 1000), (3, 9000), (129, 2049), (1, 70001)):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(rows, classes).to(dtype).npu().requires_grad_()
        target, weight = torch.randint(classes, (rows,)).npu(), torch.rand(classes).npu()
        output = npu_ce_jit.cross_entropy(x, target, weight, label_smoothing=0.1, return_lse=True, return_entropy=True)
        (output.loss + output.lse.sum() + output.entropy.sum()).backward()
        for tensor in (output.loss, output.lse, output.entropy, x.grad):
            digest.update(tensor.detach().cpu().float().numpy().tobytes())
print(torch.npu.get_device_name(), digest.hexdigest())
"""


# Without caching, each buffer is a separate allocation: bounds are exact, and it is unmapped as soon as torch frees it.
@pytest.mark.parametrize(
    "environment",
    [
        {"VIRTUAL_CANN_SOC": "Ascend910B4", "TASK_QUEUE_ENABLE": "0"},
        {"VIRTUAL_CANN_SOC": "Ascend910_9382", "PYTORCH_NO_NPU_MEMORY_CACHING": "1"},
    ],
    ids=["40 cores, no queue", "48 cores, no caching"],
)
def test_the_bits_are_the_same_everywhere(
    environment: dict[str, str], device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(COMPUTE, {})
    chip, bits = capsys.readouterr().out.split()
    assert chip == "Ascend910B2"
    done = run(COMPUTE, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [environment["VIRTUAL_CANN_SOC"], bits]


FORK = """
import os, sys, torch, torch_npu
import npu_ce_jit
from npu_ce_jit import bootstrap
assert bootstrap.current().npu.state == "built"
assert not torch.npu.is_initialized()
assert "libnpu_ce" not in open("/proc/self/maps").read().replace("libnpu_ce_jit_cpu", "")
def compute():
    x = torch.zeros(4, 5).npu().requires_grad_()
    npu_ce_jit.cross_entropy(x, torch.zeros(4, dtype=torch.int64).npu()).backward()
    assert "libnpu_ce_kernels" in open("/proc/self/maps").read()
    print(x.grad.cpu()[0, 0].item(), flush=True)
child = os.fork()
if child == 0:
    compute()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
compute()
"""


def test_an_import_touches_no_device_so_that_children_may_use_theirs() -> None:
    done = run(FORK)
    assert done.returncode == 0, done.stderr
    assert [float(line) for line in done.stdout.split()] == pytest.approx([-0.2, -0.2])
