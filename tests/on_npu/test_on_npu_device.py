# SPDX-License-Identifier: Apache-2.0
"""Devices, memory, streams and events of the virtual CANN, through the real torch_npu where it uses them."""

from __future__ import annotations

import copy
import ctypes
import io
import random
import re

import acl
import pytest
import torch
import torch_npu  # noqa: F401
from loss_on_npu import whole_device
from virtual_cann import observe
from virtual_process import run, run_from_the_start

__all__ = ["whole_device"]  # a fixture


def test_a_device_says_what_it_is() -> None:
    assert torch.npu.device_count() == 2
    properties = torch.npu.get_device_properties(0)
    assert properties.name == torch.npu.get_device_name(0) == "Ascend910B2"
    assert (properties.cube_core_num, properties.vector_core_num) == (24, 48)
    free, total = torch.npu.mem_get_info(1)
    assert 0 < free <= total


def test_a_start_warns_of_nothing_that_is_missing() -> None:
    done = run_from_the_start(
        "import torch, torch_npu; torch.ones(3).npu().add_(1).cpu(); print(torch.npu.get_device_name(0))"
    )
    assert done.returncode == 0
    # torch_npu always prints the padding of its allocations on these chips.
    warnings = [line for line in done.stderr.splitlines() if "32 padding size" not in line]
    assert warnings == []


CHIPS = {"Ascend910B4": "20 40", "Ascend910_9382": "24 48"}


@pytest.mark.parametrize("soc", CHIPS)
def test_other_chips(soc: str) -> None:
    code = "import torch, torch_npu; p = torch.npu.get_device_properties(0)"
    done = run(f"{code}; print(p.name, p.cube_core_num, p.vector_core_num)", VIRTUAL_CANN_SOC=soc)
    assert done.stdout.split("\n")[0] == f"{soc} {CHIPS[soc]}"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("VIRTUAL_CANN_SOC", "Ascend910B9", "one of Ascend910B1, Ascend910B2"),
        ("VIRTUAL_CANN_DEVICES", "0", "an integer from 1 to 16"),
        ("VIRTUAL_CANN_MEMORY", "8G", "an integer from 1"),
        ("VIRTUAL_CANN_FAULTS", "lunch=1", "a comma list of launch=N"),
    ],
)
def test_a_variable_that_means_nothing_is_refused(name: str, value: str, expected: str) -> None:
    done = run_from_the_start("import ctypes; print(ctypes.CDLL('libascendcl.so').aclInit(None))", **{name: value})
    assert done.stdout == "100000\n"
    assert name in done.stderr
    assert value in done.stderr
    assert expected in done.stderr


def test_memory_is_accounted_for() -> None:
    torch.npu.empty_cache()
    free, total = torch.npu.mem_get_info()
    block = acl.allocate(12_345_678)
    assert torch.npu.mem_get_info() == (free - 12_345_678, total)
    assert acl.library.aclrtFree(block) == acl.SUCCESS
    assert torch.npu.mem_get_info() == (free, total)

    torch.npu.reset_peak_memory_stats()
    before = torch.npu.memory_allocated()
    x = torch.empty(1 << 20, device="npu")
    assert torch.npu.memory_allocated() - before >= 4 << 20
    del x
    assert torch.npu.memory_allocated() == before
    assert torch.npu.max_memory_allocated() - before >= 4 << 20
    torch.npu.empty_cache()
    assert torch.npu.mem_get_info() == (free, total)


def test_fresh_memory_is_junk() -> None:
    for bytes_ in (100, 5_000_000):
        block = acl.allocate(bytes_)
        host = torch.zeros(bytes_ // 4)
        assert acl.copy(host.data_ptr(), block.value, host.nbytes, acl.DEVICE_TO_HOST) == acl.SUCCESS
        assert host.isnan().all()
        assert acl.library.aclrtFree(block) == acl.SUCCESS


def test_exhausted_memory_raises_and_the_process_goes_on() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 40, device="npu")
    torch.npu.empty_cache()
    free, _ = torch.npu.mem_get_info()
    most = torch.empty(free * 3 // 4, dtype=torch.uint8, device="npu")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(free // 2, dtype=torch.uint8, device="npu")
    del most
    half = torch.empty(free // 2, dtype=torch.uint8, device="npu")
    assert half[:2].fill_(3).tolist() == [3, 3]


def test_three_thousand_blocks_on_four_streams_of_two_devices() -> None:
    choose = random.Random(5)
    places = [(device, torch.npu.Stream(device)) for device in (0, 1) for _ in range(2)]
    source = torch.randint(0, 256, (300_000,), dtype=torch.uint8).pin_memory()
    alive: list[tuple[torch.Tensor, int, torch.npu.Stream]] = []

    def check(block: torch.Tensor, start: int, stream: torch.npu.Stream) -> None:
        with torch.npu.stream(stream):
            back = block.to("cpu", non_blocking=True)
        stream.synchronize()
        assert torch.equal(back, source[start : start + len(block)])

    for _ in range(3000):
        device, stream = choose.choice(places)
        size = choose.randrange(1, 1 << choose.randrange(1, 18))
        start = choose.randrange(len(source) - size)
        with torch.npu.stream(stream):
            block = torch.empty(size, dtype=torch.uint8, device=f"npu:{device}")
            block.copy_(source[start : start + size], non_blocking=True)
        alive.append((block, start, stream))
        if len(alive) > 100:
            check(*alive.pop(choose.randrange(len(alive))))
    for block in alive:
        check(*block)


def test_copies_between_devices_and_current_devices() -> None:
    x = torch.randn(77, 13)
    first = x.to("npu:0")
    second = first.t().contiguous().to("npu:1")
    assert second.device == torch.device("npu", 1)
    assert torch.equal((second + 1).to("npu:0").cpu(), x.t() + 1)
    torch.npu.set_device(1)
    assert torch.npu.current_device() == 1
    assert torch.ones(3).npu().device.index == 1


def test_a_copy_that_leaves_its_block_is_refused() -> None:
    block, host, stream = acl.allocate(1000), torch.zeros(2000, dtype=torch.uint8), acl.create_stream()
    start, inside = block.value or 0, host.data_ptr()
    for on in (None, stream):
        past = acl.copy(start + 1, inside, 1000, acl.HOST_TO_DEVICE, on)
        acl.refused(past, "destination", "1000 bytes", "runs past the end of", "on device 0")
        acl.refused(acl.copy(inside, inside, 8, acl.HOST_TO_DEVICE, on), "destination", "is not device memory")
        acl.refused(acl.copy(inside, start, 8, acl.HOST_TO_DEVICE, on), "destination", "is not device memory")
        acl.refused(acl.copy(start, start, 8, acl.HOST_TO_DEVICE, on), "source", "must be host memory")
        acl.refused(acl.copy(inside, start, 1001, acl.DEVICE_TO_HOST, on), "source", "runs past the end of")
        acl.refused(acl.copy(None, start, 8, acl.DEVICE_TO_HOST, on), "destination", "must not be null")
    acl.refused(acl.library.aclrtFree(ctypes.c_void_p(start + 64)), "not the start of a live device allocation")
    assert acl.library.aclrtFree(block) == acl.SUCCESS
    acl.refused(acl.copy(inside, start, 8, acl.DEVICE_TO_HOST), "source", "was freed")
    acl.refused(acl.library.aclrtFree(block), "not the start of a live device allocation")


def test_memory_freed_before_its_copy_runs_is_an_asynchronous_error() -> None:
    block, host, stream = acl.allocate(1000), torch.zeros(1000, dtype=torch.uint8), acl.create_stream()
    observe.set_faults("slow=1000ms")
    assert acl.copy(host.data_ptr(), block.value, 1000, acl.DEVICE_TO_HOST, stream) == acl.SUCCESS
    assert acl.library.aclrtFree(block) == acl.SUCCESS
    acl.refused(acl.library.aclrtSynchronizeStream(stream), "aclrtMemcpyAsync", "was freed")


def test_streams_wait_for_events_across_devices() -> None:
    observe.set_faults("slow=5ms")
    streams = [torch.npu.Stream(device) for device in (0, 1, 0, 1)]
    x = torch.zeros(1000)
    for step, stream in enumerate(streams):
        with torch.npu.stream(stream):
            if step:
                stream.wait_event(done)  # noqa: F821
            x = x.to(stream.device, non_blocking=True) * 2 + 1
            x.record_stream(stream)
            done = stream.record_event()
    done.synchronize()
    assert done.query()
    assert torch.equal(x.cpu(), torch.full((1000,), 15.0))


def test_pinned_memory() -> None:
    x = torch.randn(1001, 7).pin_memory()
    assert x.is_pinned()
    assert not torch.randn(3).is_pinned()
    y = x.to("npu", non_blocking=True)
    assert torch.equal(y.cpu(), x)


def test_small_things_that_programs_do() -> None:
    x = torch.randn(3, 5)
    y = x.npu()
    assert y[1, 2].item() == x[1, 2].item()
    file = io.BytesIO()
    torch.save(y, file)
    for where in ("npu:1", "cpu"):
        file.seek(0)
        assert torch.equal(torch.load(file, map_location=where).cpu(), x)
    assert torch.equal(copy.deepcopy(y).cpu(), x)
    torch.manual_seed(3)
    torch.npu.manual_seed_all(3)
    stream = torch.npu.Stream()
    with torch.npu.stream(stream):
        assert torch.npu.current_stream() == stream
        assert stream.npu_stream not in (0, torch.npu.default_stream().npu_stream)


TRAIN = """
import torch, torch_npu
torch.manual_seed(0)
model = torch.nn.Linear(13, 7)
x = torch.randn(5, 13)
losses = []
for device in ("cpu", "npu"):
    model = model.to(device)
    model.zero_grad()
    (model(x.to(device)) * 0.5).sum().backward()
    losses.append(model.weight.grad.cpu().clone())
    model.weight.grad = model.bias.grad = None
torch.testing.assert_close(*losses)
try:
    torch.empty(1 << 40, device="npu")
except torch.OutOfMemoryError:
    print("fine")
"""


@pytest.mark.parametrize(
    "setting",
    ["TASK_QUEUE_ENABLE=0", "TASK_QUEUE_ENABLE=2", "ASCEND_LAUNCH_BLOCKING=1", "PYTORCH_NO_NPU_MEMORY_CACHING=1"],
)
def test_torch_npus_ways_to_work(setting: str) -> None:
    name, _, value = setting.partition("=")
    done = run(TRAIN, **{name: value})
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_forked_process_is_told_so_and_ends() -> None:
    code = """
import os, torch, torch_npu
x = torch.ones(3).npu().add_(1)
torch.npu.synchronize()
child = os.fork()
if child == 0:
    try:
        x.cpu()
    except RuntimeError as error:
        print("forked" in str(error), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
loader = torch.utils.data.DataLoader(torch.arange(6.0), batch_size=3, num_workers=1, pin_memory=True)
print([(batch.npu() + x).tolist() for batch in loader])
"""
    done = run(code)
    assert done.stdout == "True\n[[2.0, 3.0, 4.0], [5.0, 6.0, 7.0]]\n", done.stderr


def test_a_process_ends_with_work_under_way() -> None:
    code = "import torch, torch_npu\nx = torch.ones(3).npu()\nfor _ in range(100): x += 1"
    done = run_from_the_start(code, VIRTUAL_CANN_FAULTS="slow=2ms")
    assert (done.returncode, re.findall("[Ee]rror", done.stderr)) == (0, [])
