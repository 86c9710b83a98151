# SPDX-License-Identifier: Apache-2.0
"""The runtime's reports: a thread's last error, the task last put on a stream, and limits of cores."""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref, c_uint32

import acl
import torch
import torch_npu  # noqa: F401
from loss_on_npu import whole_device

__all__ = ["whole_device"]  # a fixture

NO_TASK = (0xFFFFFFFF, 0xFFFF)
CUBE, VECTOR = 0, 1


# Errors


def test_the_last_error_is_its_threads_and_the_last_one_that_failed() -> None:
    assert acl.library.aclrtDestroyStream(12345) == acl.PARAM_INVALID
    acl.create_stream()
    assert acl.library.aclrtPeekAtLastError(0) == acl.PARAM_INVALID, "a success takes nothing away"
    assert acl.library.aclrtSetDevice(99) == 107001
    assert acl.library.aclrtPeekAtLastError(0) == 107001
    of_another_thread: list[int] = []
    thread = threading.Thread(target=lambda: of_another_thread.append(acl.library.aclrtPeekAtLastError(0)))
    thread.start()
    thread.join()
    assert of_another_thread == [acl.SUCCESS]
    assert acl.library.aclrtGetLastError(0) == 107001
    assert acl.library.aclrtPeekAtLastError(0) == acl.SUCCESS


def test_there_is_no_other_level_of_errors_than_a_threads() -> None:
    assert acl.library.aclrtDestroyStream(12345) == acl.PARAM_INVALID
    assert acl.library.aclrtPeekAtLastError(1) == acl.library.aclrtGetLastError(1) == 100000
    assert acl.library.aclrtPeekAtLastError(0) == acl.PARAM_INVALID


def test_the_text_of_an_error_is_given_once() -> None:
    assert acl.library.aclrtDestroyStream(12345) != acl.SUCCESS
    assert "aclrtDestroyStream" in (acl.library.aclGetRecentErrMsg() or b"").decode()
    assert acl.library.aclGetRecentErrMsg() is None
    assert acl.library.aclrtPeekAtLastError(0) == acl.PARAM_INVALID


# Tasks


def last_task() -> tuple[int, int]:
    task, stream = c_uint32(), c_uint32()
    assert acl.library.rtGetTaskIdAndStreamID(byref(task), byref(stream)) == acl.SUCCESS
    return task.value, stream.value


def test_the_last_task_of_a_thread_changes_with_whatever_is_put_on_a_stream_and_not_with_what_is_refused() -> None:
    seen = []
    stream, other, event = acl.create_stream(), acl.create_stream(), ctypes.c_void_p()
    block = acl.allocate(64)
    host = torch.zeros(16)
    assert acl.library.aclrtCreateEvent(byref(event)) == acl.SUCCESS

    def work() -> None:
        acl.library.aclrtSetDevice(0)
        seen.append(last_task())
        for on in (stream, stream, other):
            assert acl.copy(host.data_ptr(), block.value, 64, acl.DEVICE_TO_HOST, on) == acl.SUCCESS
            seen.append(last_task())
        assert acl.library.aclrtRecordEvent(event, stream) == acl.SUCCESS
        seen.append(last_task())
        assert acl.library.aclrtStreamWaitEvent(other, event) == acl.SUCCESS
        seen.append(last_task())
        assert acl.copy(host.data_ptr(), block.value, 65, acl.DEVICE_TO_HOST, stream) != acl.SUCCESS
        seen.append(last_task())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (_, first), (_, second) = seen[1], seen[3]
    assert first != second
    assert seen == [NO_TASK, (0, first), (1, first), (0, second), (2, first), (1, second), (1, second)]
    assert acl.library.aclrtSynchronizeDevice() == acl.SUCCESS
    assert acl.library.aclrtFree(block) == acl.SUCCESS
    assert acl.library.rtGetTaskIdAndStreamID(None, None) == acl.PARAM_INVALID


# Cores


def limit(stream: ctypes.c_void_p, kind: int = VECTOR) -> int:
    value = c_uint32()
    assert acl.library.aclrtGetStreamResLimit(stream, kind, byref(value)) == acl.SUCCESS
    return value.value


def of_thread() -> int:
    value = c_uint32()
    assert acl.library.aclrtGetResInCurrentThread(VECTOR, byref(value)) == acl.SUCCESS
    return value.value


def test_a_streams_limit_comes_before_the_devices_and_that_before_the_hardwares() -> None:
    stream, value = acl.create_stream(), ctypes.c_int64()
    assert (limit(stream), limit(stream, CUBE)) == (48, 24)
    assert acl.library.aclrtSetDeviceResLimit(0, VECTOR, 8) == acl.SUCCESS
    assert (limit(stream), limit(stream, CUBE), of_thread()) == (8, 24, 8)
    assert acl.library.aclrtSetStreamResLimit(stream, VECTOR, 20) == acl.SUCCESS
    assert (limit(stream), of_thread()) == (20, 8), "more than the device's; a thread uses it once it says so"
    assert acl.library.aclrtUseStreamResInCurrentThread(stream) == acl.SUCCESS
    assert of_thread() == 20
    assert acl.library.aclrtUnuseStreamResInCurrentThread(stream) == acl.SUCCESS
    assert of_thread() == 8
    assert acl.library.aclGetDeviceCapability(0, 1, byref(value)) == acl.SUCCESS
    assert value.value == 48, "what the hardware has"
    assert acl.library.aclrtResetStreamResLimit(stream) == acl.SUCCESS
    assert limit(stream) == 8
    assert acl.library.aclrtResetDeviceResLimit(0) == acl.SUCCESS
    assert limit(stream) == 48


def test_limits_that_mean_nothing_are_refused() -> None:
    stream, value = acl.create_stream(), c_uint32()
    acl.refused(acl.library.aclrtSetStreamResLimit(stream, VECTOR, 49), "expected at most the 48 that there are")
    acl.refused(acl.library.aclrtSetDeviceResLimit(0, CUBE, 25), "expected at most the 24")
    acl.refused(acl.library.aclrtGetStreamResLimit(stream, 2, byref(value)), "there is no kind of cores 2")
    acl.refused(acl.library.aclrtGetStreamResLimit(stream, VECTOR, None), "must not be null")
    assert limit(stream) == 48
