# SPDX-License-Identifier: Apache-2.0
"""Stream captures and their replay: through torch.npu.NPUGraph, and through the ACL calls below it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import byref, c_int, c_void_p

import acl
import pytest
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401
from loss_on_npu import whole_device
from shapes import logits, targets
from torch import Tensor
from virtual_cann import observe

from npu_ce_jit import cross_entropy

__all__ = ["whole_device"]  # a fixture

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
NONE, ACTIVE, INVALIDATED = 0, 1, 2
DEPENDENCY, UNJOINED, STREAM_CAPTURED, EVENT_CAPTURED, NOT_CAPTURED = 107024, 107025, 107027, 107028, 107029
MODE_FORBIDS, CONFLICT, UNMATCHED, WRONG_THREAD, UNPINNED, FAILED = 107030, 107032, 107036, 107038, 107041, 507903


# torch.npu.NPUGraph


def loss_and_gradient(x: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    output = cross_entropy(x, target, weight, label_smoothing=0.1, return_lse=True)
    (gradient,) = torch.autograd.grad(output.loss + output.lse.sum(), x)
    return output.loss.detach(), output.lse.detach(), gradient


@pytest.mark.parametrize("shape", [(9, 70), (4, 9000)], ids=["narrow", "wide"])
def test_a_step_is_captured_and_replayed_on_other_values(shape: tuple[int, int], device: torch.device) -> None:
    first, second = logits(*shape, torch.float32), logits(*shape, torch.float32).flip(0) * 2
    labels, weights = targets(*shape), torch.rand(shape[1])
    x, target, weight = first.to(device).requires_grad_(), labels.to(device), weights.to(device)
    aside = torch.npu.Stream()
    aside.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(aside):
        loss_and_gradient(x, target, weight)
    torch.npu.current_stream().wait_stream(aside)
    torch.npu.synchronize()

    graph = torch.npu.NPUGraph()
    observe.clear_reports()
    with torch.npu.graph(graph):
        captured = loss_and_gradient(x, target, weight)
    torch.npu.synchronize()
    assert observe.reports() == [], "what is captured does not run"

    for values, classes in ((second, labels.flip(0)), (first, labels)):
        x.detach().copy_(values)
        target.copy_(classes)
        graph.replay()
        torch.npu.synchronize()
        launched = {report["kernel"] for report in observe.reports()}
        assert any("forward" in kernel for kernel in launched)
        assert any("backward" in kernel for kernel in launched)
        replayed = [part.cpu() for part in captured]
        for one, two in zip(replayed, loss_and_gradient(x, target, weight), strict=True):
            assert torch.equal(one, two.cpu())
        truth = F.cross_entropy(values, classes, weights, label_smoothing=0.1)
        torch.testing.assert_close(replayed[0], truth)
    graph.reset()


# The calls below it


class Buffer:
    """Sixteen floats on the device, and pinned memory to read them."""

    def __init__(self) -> None:
        self.block = acl.allocate(64)
        self.host = torch.zeros(16).pin_memory()

    def read(self) -> list[float]:
        assert acl.copy(self.host.data_ptr(), self.block.value, 64, acl.DEVICE_TO_HOST) == acl.SUCCESS
        return self.host.tolist()

    def fill_on(self, stream: c_void_p, byte: int) -> int:
        size = ctypes.c_size_t(64)
        code: int = acl.library.aclrtMemsetAsync(self.block, size, byte, size, stream)
        return code


def begin(stream: c_void_p, mode: int = GLOBAL) -> None:
    assert acl.library.aclmdlRICaptureBegin(stream, mode) == acl.SUCCESS, acl.message()


def end(stream: c_void_p) -> tuple[int, c_void_p]:
    model = c_void_p()
    return acl.library.aclmdlRICaptureEnd(stream, byref(model)), model


def status(stream: c_void_p) -> tuple[int, int | None]:
    state, model = c_int(), c_void_p()
    assert acl.library.aclmdlRICaptureGetInfo(stream, byref(state), byref(model)) == acl.SUCCESS
    return state.value, model.value


def new_event() -> c_void_p:
    event = c_void_p()
    assert acl.library.aclrtCreateEventExWithFlag(byref(event), 1) == acl.SUCCESS
    return event


def test_what_is_captured_runs_when_the_model_does_in_its_order_on_any_stream() -> None:
    stream, other, first, second = acl.create_stream(), acl.create_stream(), Buffer(), Buffer()
    assert status(stream) == (NONE, None)
    first.fill_on(stream, 1)
    assert acl.library.aclrtSynchronizeStream(stream) == acl.SUCCESS
    ones = first.read()
    begin(stream)
    state, model = status(stream)
    assert (state, status(other)) == (ACTIVE, (NONE, None))
    assert acl.copy(second.block.value, first.block.value, 64, acl.DEVICE_TO_DEVICE, stream) == acl.SUCCESS
    assert first.fill_on(stream, 0) == acl.SUCCESS
    assert acl.copy(first.host.data_ptr(), second.block.value, 64, acl.DEVICE_TO_HOST, stream) == acl.SUCCESS
    first.host.fill_(7)
    code, ended = end(stream)
    assert (code, ended.value, status(stream)) == (acl.SUCCESS, model, (NONE, None))
    assert acl.library.aclrtSynchronizeDevice() == acl.SUCCESS
    assert first.host.tolist() == [7] * 16, "nothing ran yet"
    for expected in (ones, [0.0] * 16):
        assert acl.library.aclmdlRIExecuteAsync(ended, other) == acl.SUCCESS
        assert acl.library.aclrtSynchronizeStream(other) == acl.SUCCESS
        assert first.host.tolist() == expected
    assert acl.library.aclmdlRIDestroy(ended) == acl.SUCCESS
    acl.refused(acl.library.aclmdlRIExecuteAsync(ended, other), "is not a live model")


Call = Callable[[c_void_p, c_void_p, Buffer], int]
REFUSED: dict[str, tuple[int, Call]] = {
    "synchronise of the stream": (STREAM_CAPTURED, lambda s, _e, _b: acl.library.aclrtSynchronizeStream(s)),
    "query of the stream": (STREAM_CAPTURED, lambda s, _e, _b: acl.library.aclrtStreamQuery(s, byref(c_int()))),
    "synchronise of the device": (STREAM_CAPTURED, lambda _s, _e, _b: acl.library.aclrtSynchronizeDevice()),
    "destruction": (STREAM_CAPTURED, lambda s, _e, _b: acl.library.aclrtDestroyStream(s)),
    "another capture": (STREAM_CAPTURED, lambda s, _e, _b: acl.library.aclmdlRICaptureBegin(s, GLOBAL)),
    "synchronise of an event": (EVENT_CAPTURED, lambda _s, e, _b: acl.library.aclrtSynchronizeEvent(e)),
    "query of an event": (EVENT_CAPTURED, lambda _s, e, _b: acl.library.aclrtQueryEventStatus(e, byref(c_int()))),
    "copy that waits": (
        MODE_FORBIDS,
        lambda _s, _e, b: acl.copy(b.host.data_ptr(), b.block.value, 64, acl.DEVICE_TO_HOST),
    ),
    "fill that waits": (
        MODE_FORBIDS,
        lambda _s, _e, b: acl.library.aclrtMemset(b.block, ctypes.c_size_t(64), 0, ctypes.c_size_t(64)),
    ),
    "copy of memory that is not pinned": (
        UNPINNED,
        lambda s, _e, b: acl.copy(b.block.value, torch.zeros(16).data_ptr(), 64, acl.HOST_TO_DEVICE, s),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_captured_stream_does_not_take_makes_the_capture_fail(name: str) -> None:
    expected, call = REFUSED[name]
    stream, buffer, event = acl.create_stream(), Buffer(), new_event()
    begin(stream)
    assert acl.library.aclrtRecordEvent(event, stream) == acl.SUCCESS
    assert call(stream, event, buffer) == expected
    acl.refused(expected, "not while a stream is captured")
    assert status(stream)[0] == INVALIDATED
    assert buffer.fill_on(stream, 1) == FAILED
    code, model = end(stream)
    assert (code, model.value, status(stream)) == (FAILED, None, (NONE, None))
    assert end(stream)[0] == NOT_CAPTURED
    assert buffer.fill_on(stream, 0) == acl.SUCCESS
    assert acl.library.aclrtSynchronizeStream(stream) == acl.SUCCESS
    assert buffer.read() == [0] * 16


def test_a_thread_may_ask_for_calls_that_wait() -> None:
    stream, buffer, mode = acl.create_stream(), Buffer(), c_int(RELAXED)
    begin(stream)
    assert acl.library.aclmdlRICaptureThreadExchangeMode(byref(mode)) == acl.SUCCESS
    assert mode.value == GLOBAL
    buffer.read()
    assert acl.library.aclmdlRICaptureThreadExchangeMode(byref(mode)) == acl.SUCCESS
    assert mode.value == RELAXED
    assert end(stream)[0] == acl.SUCCESS
    mode.value = 3
    acl.refused(acl.library.aclmdlRICaptureThreadExchangeMode(byref(mode)), "there is no capture mode 3")


def joined() -> tuple[c_void_p, c_void_p, c_void_p]:
    """A capturing stream, another stream that has joined it through an event, and the event."""
    origin, side, event = acl.create_stream(), acl.create_stream(), new_event()
    begin(origin)
    assert acl.library.aclrtRecordEvent(event, origin) == acl.SUCCESS
    assert acl.library.aclrtStreamWaitEvent(side, event) == acl.SUCCESS
    assert status(side) == status(origin)
    return origin, side, event


def test_a_stream_that_waits_for_a_captured_one_joins_it_and_leaves_at_the_end() -> None:
    origin, side, event = joined()
    buffer = Buffer()
    assert buffer.fill_on(side, 0) == acl.SUCCESS
    assert end(side)[0] == UNMATCHED
    assert acl.library.aclrtRecordEvent(event, side) == acl.SUCCESS
    assert acl.library.aclrtStreamWaitEvent(origin, event) == acl.SUCCESS
    code, model = end(origin)
    assert (code, status(side)) == (acl.SUCCESS, (NONE, None)), acl.message()
    assert buffer.read() != [0] * 16
    assert acl.library.aclmdlRIExecuteAsync(model, origin) == acl.SUCCESS
    assert acl.library.aclrtSynchronizeStream(origin) == acl.SUCCESS
    assert buffer.read() == [0] * 16


@pytest.mark.parametrize("late", [False, True], ids=["never", "not its last task"])
def test_work_that_the_first_stream_does_not_wait_for_ends_in_an_error(late: bool) -> None:
    origin, side, event = joined()
    if late:
        assert acl.library.aclrtRecordEvent(event, side) == acl.SUCCESS
        assert acl.library.aclrtStreamWaitEvent(origin, event) == acl.SUCCESS
        assert Buffer().fill_on(side, 0) == acl.SUCCESS
    assert end(origin)[0] == UNJOINED
    assert status(side) == status(origin) == (NONE, None)


def test_captures_keep_to_themselves() -> None:
    origin, _, event = joined()
    other = acl.create_stream()
    begin(other)
    assert acl.library.aclrtStreamWaitEvent(other, event) == CONFLICT
    assert (end(origin)[0], end(other)[0]) == (FAILED, FAILED)

    outside = new_event()
    assert acl.library.aclrtRecordEvent(outside, other) == acl.SUCCESS
    begin(origin)
    assert acl.library.aclrtStreamWaitEvent(origin, outside) == DEPENDENCY
    assert end(origin)[0] == FAILED


@pytest.mark.parametrize(("mode", "expected"), [(GLOBAL, WRONG_THREAD), (THREAD_LOCAL, WRONG_THREAD), (RELAXED, 0)])
def test_a_capture_ends_in_the_thread_that_began_it(mode: int, expected: int) -> None:
    stream = acl.create_stream()

    def work() -> None:
        acl.library.aclrtSetDevice(0)
        begin(stream, mode)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert status(stream)[0] == ACTIVE
    assert end(stream)[0] == expected
    assert status(stream)[0] == NONE


def test_memory_has_to_live_as_long_as_its_model() -> None:
    stream, buffer = acl.create_stream(), Buffer()
    begin(stream)
    assert buffer.fill_on(stream, 0) == acl.SUCCESS
    code, model = end(stream)
    assert code == acl.SUCCESS
    assert acl.library.aclrtFree(buffer.block) == acl.SUCCESS
    assert acl.library.aclmdlRIExecuteAsync(model, stream) == acl.SUCCESS
    acl.refused(acl.library.aclrtSynchronizeStream(stream), "aclrtMemsetAsync of a capture", "was freed")
