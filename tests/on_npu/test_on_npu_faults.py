# SPDX-License-Identifier: Apache-2.0
"""Injected faults of the virtual device: when they occur, their messages, and what works after them."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from pathlib import Path

import acl
import pytest
import torch
import torch_npu  # noqa: F401
from loss_on_npu import whole_device
from virtual_cann import observe
from virtual_process import run

__all__ = ["whole_device"]  # a fixture

LAUNCHER = """
#include "machine/core.h"
#include "machine/launch.h"

using namespace virtual_cann;

static void touch(const void* pointer) {
  Core::current().issue(Pipe::MTE2, "DataCopy", Place::here());
  Core::current().gm_read(pointer, 4);
}

extern "C" void launch(unsigned blocks, void* stream, const void* pointer) {
  Launch{"touch", blocks, nullptr, stream}.run(touch, pointer);
}
"""


@pytest.fixture(autouse=True)
def _no_reports(whole_device: None) -> None:
    observe.clear_reports()


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("launcher")
    source, library = directory / "launcher.cpp", directory / "launcher.so"
    source.write_text(LAUNCHER, "utf-8")
    include = Path(observe.__file__).parent
    lib64 = Path(os.environ["ASCEND_HOME_PATH"], "lib64")
    command = [
        "g++",
        "-std=c++17",
        "-shared",
        "-fPIC",
        f"-I{include}",
        source,
        f"-L{lib64}",
        "-lascendcl",
        "-o",
        library,
    ]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.launch.argtypes = [ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]
    return loaded


def test_a_kernel_runs_on_torchs_stream_and_is_reported(kernels: ctypes.CDLL) -> None:
    x = torch.ones(8).npu()
    kernels.launch(3, torch.npu.current_stream().npu_stream, x.data_ptr())
    torch.npu.synchronize()
    (report,) = observe.reports()
    assert (report["kernel"], report["blocks"]) == ("touch", 3)


def test_a_kernel_that_leaves_live_memory_of_its_device_fails_as_a_vector_core_does(kernels: ctypes.CDLL) -> None:
    there = torch.ones(8).npu()
    elsewhere = torch.ones(8).to("npu:1")
    torch.npu.synchronize(0)
    torch.npu.synchronize(1)
    for pointer in (None, elsewhere.data_ptr(), torch.ones(8).data_ptr()):
        stream = acl.create_stream()
        kernels.launch(1, stream, pointer)
        assert acl.library.aclrtSynchronizeStream(stream) == acl.VECTOR_CORE_EXCEPTION
        acl.refused(acl.library.aclrtSynchronizeStream(stream), "kernel touch on device 0", "DataCopy")
        assert acl.library.aclrtDestroyStreamForce(stream) == acl.SUCCESS
    assert there.cpu().sum() == 8


def test_a_failed_launch_is_raised_at_the_synchronise_and_later_tasks_are_dropped(kernels: ctypes.CDLL) -> None:
    x = torch.zeros(8).npu()
    torch.npu.synchronize()
    stream = torch.npu.current_stream()
    observe.set_faults("launch=2,slow=1000ms")
    for _ in range(3):
        kernels.launch(1, stream.npu_stream, x.data_ptr())  # returns before the device runs it
    assert not stream.query()
    x.add_(1)
    with pytest.raises(RuntimeError, match=r"(?s)507035.*kernel touch on device 0: VIRTUAL_CANN_FAULTS"):
        torch.npu.synchronize()
    with pytest.raises(RuntimeError, match="507035"):
        stream.synchronize()
    assert len(observe.reports()) == 1
    observe.set_faults("")
    observe.clear_errors()
    assert x.tolist() == [0] * 8
    assert x.add_(1).tolist() == [1] * 8


def test_other_streams_go_on_and_nobody_waits_for_a_failed_one(kernels: ctypes.CDLL) -> None:
    observe.set_faults("launch=1")
    failing, other = torch.npu.Stream(), torch.npu.Stream()
    kernels.launch(1, failing.npu_stream, None)
    event = failing.record_event()
    with torch.npu.stream(other):
        event.wait()
        x = torch.ones(8, device="npu") + 1
    other.synchronize()
    assert x.tolist() == [2] * 8
    with pytest.raises(RuntimeError, match="507035"):
        failing.synchronize()


@pytest.mark.parametrize(("blocks", "expected"), [(0, "0 blocks: expected 1 to 65535"), (65536, "65536 blocks")])
def test_an_impossible_launch_is_refused(kernels: ctypes.CDLL, blocks: int, expected: str) -> None:
    stream = acl.create_stream()
    acl.library.aclrtGetLastError(0)
    kernels.launch(blocks, stream, None)
    assert acl.library.aclrtPeekAtLastError(0) == acl.PARAM_INVALID
    acl.refused(acl.library.aclrtGetLastError(0), "launch of kernel touch", expected)
    assert acl.library.aclrtGetLastError(0) == acl.SUCCESS
    acl.refused(acl.library.aclrtSynchronizeStream(stream), "launch of kernel touch refused", expected)
    assert acl.library.aclrtSynchronizeStream(stream) == acl.SUCCESS


def test_a_launch_on_no_stream_is_refused(kernels: ctypes.CDLL) -> None:
    destroyed = acl.create_stream()
    assert acl.library.aclrtDestroyStream(destroyed) == acl.SUCCESS
    for stream, expected in ((None, "the stream is null"), (destroyed, "is not a live stream")):
        kernels.launch(1, stream, None)
        acl.refused(acl.library.aclrtGetLastError(0), expected)
        acl.refused(acl.library.aclrtSynchronizeDevice(), expected)
        assert acl.library.aclrtSynchronizeDevice() == acl.SUCCESS


def test_a_slow_device_keeps_order_and_its_events_tell_the_time() -> None:
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    x = torch.zeros(8).npu()
    observe.set_faults("slow=200ms")
    start.record()
    for factor in range(5):
        x.mul_(factor).add_(1)
    end.record()
    assert not end.query()
    end.synchronize()
    assert start.elapsed_time(end) >= 10 * 200
    assert x.tolist() == [65] * 8


def test_an_allocation_that_fails_on_demand() -> None:
    torch.npu.empty_cache()
    observe.set_faults("malloc=1")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 26, device="npu")
    observe.set_faults("malloc=2")
    torch.empty(1 << 26, device="npu")
    observe.set_faults("")
    torch.empty(1 << 27, device="npu")


LOSE = """
import torch, torch_npu
from virtual_cann import observe
x = torch.ones(8).npu()
y = torch.ones(8).to("npu:1")
torch.npu.synchronize()
observe.set_faults("lost=2")
x.add_(1).add_(1)
torch.npu.synchronize()
x.add_(1)  # one alone: a later one would raise where it is queued, if the device has come to this by then
for _ in range(2):
    try:
        torch.npu.synchronize()
    except RuntimeError as error:
        print("507010" in str(error) and "device 0 is lost" in str(error))
try:
    x.cpu()
except RuntimeError as error:
    print("device 0 is lost" in str(error))
observe.set_faults("")
print((y + 1).tolist() == [2] * 8)
"""


def test_a_lost_device_stays_lost_and_the_other_one_works() -> None:
    done = run(LOSE)
    assert (done.returncode, done.stdout) == (0, "True\n" * 4), done.stderr


NONSENSE = ["lunch=1", "launch", "launch=", "launch=0", "launch=-1", "launch=1,", "launch=1,launch=2", "refuse=0"]
NONSENSE += ["slow=5", "slow=5s", "lost=1ms", "malloc=10000000000"]


@pytest.mark.parametrize("text", NONSENSE)
def test_faults_that_mean_nothing_are_refused_and_change_nothing(text: str) -> None:
    observe.set_faults("malloc=1")
    with pytest.raises(ValueError, match=r"expected a comma list of launch=N, refuse=N, lost=N, malloc=N, slow="):
        observe.set_faults(text)
    with pytest.raises(AssertionError, match="EL0004"):
        acl.allocate(100)


def test_reports_can_go_to_a_file(kernels: ctypes.CDLL, tmp_path: Path) -> None:
    code = f"""
import ctypes, torch, torch_npu
x = torch.ones(8).npu()
launch = ctypes.CDLL({kernels._name!r}).launch
launch.argtypes = [ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]
for blocks in (1, 2):
    launch(blocks, torch.npu.current_stream().npu_stream, x.data_ptr())
torch.npu.synchronize()
"""
    file = tmp_path / "reports.jsonl"
    done = run(code, VIRTUAL_CANN_REPORT=str(file))
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["blocks"] for line in file.read_text("utf-8").splitlines()] == [1, 2]
