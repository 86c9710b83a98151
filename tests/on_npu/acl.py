# SPDX-License-Identifier: Apache-2.0
"""The virtual CANN's C API, for functions that torch_npu does not expose."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_void_p

import torch

# ACL's error codes, as the tests expect them.
SUCCESS = 0
PARAM_INVALID = 107000
OUT_OF_MEMORY = 207001
VECTOR_CORE_EXCEPTION = 507035
LOST_HEARTBEAT = 507010

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3

library = ctypes.CDLL("libascendcl.so")
library.aclGetRecentErrMsg.restype = ctypes.c_char_p
library.aclrtMemcpy.argtypes = [c_void_p, ctypes.c_size_t, c_void_p, ctypes.c_size_t, ctypes.c_int]
library.aclrtMemcpyAsync.argtypes = [*library.aclrtMemcpy.argtypes, c_void_p]


def message() -> str:
    return (library.aclGetRecentErrMsg() or b"").decode()


def refused(code: int, *parts: str) -> str:
    """Asserts that a call failed with this code, and that its message contains all parts; returns the message."""
    assert code != SUCCESS
    text = message()
    for part in parts:
        assert part in text, text
    return text


def set_device(device: int = 0) -> None:
    torch.npu.set_device(device)
    assert library.aclrtSetDevice(device) == SUCCESS


def create_stream() -> c_void_p:
    stream = c_void_p()
    assert library.aclrtCreateStream(byref(stream)) == SUCCESS, message()
    return stream


def allocate(bytes_: int) -> c_void_p:
    pointer = c_void_p()
    assert library.aclrtMalloc(byref(pointer), ctypes.c_size_t(bytes_), 0) == SUCCESS, message()
    return pointer


def copy(to: int | None, from_: int | None, bytes_: int, kind: int, stream: c_void_p | None = None) -> int:
    name, last = ("aclrtMemcpy", ()) if stream is None else ("aclrtMemcpyAsync", (stream,))
    code: int = getattr(library, name)(to, bytes_, from_, bytes_, kind, *last)
    return code
