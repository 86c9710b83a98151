# SPDX-License-Identifier: Apache-2.0
"""Compiles Ascend C with the tree's bisheng, launches kernels, and returns their results and reports."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from virtual_cann import observe
from virtual_cann.prepare import prepare

MODES = ("-x", "asc", "--npu-arch=dav-2201")
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2


class CompileError(Exception):
    """bisheng refused the source; the text has its diagnostics."""


@dataclass(frozen=True)
class Outcome:
    """One launch: the stream's error code, its message, and the machine's report."""

    code: int
    message: str
    report: dict[str, Any]

    @property
    def rules_broken(self) -> set[str]:
        return {violation["rule"] for violation in self.report["violations"]}


def compile_kernels(source: Path, library: Path, *flags: str) -> ctypes.CDLL:
    """The loaded library of one source file. Raises CompileError with the compiler's own text.

    Compiles at -O0 unless `flags` say otherwise: most kernels of a test take longer to compile than to run.
    """
    acl()
    command = [str(prepare().bisheng), *MODES, "-O0", "-shared", "-fPIC", *flags, str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr)
    return ctypes.CDLL(str(library.resolve()))


def acl() -> ctypes.CDLL:
    """The runtime, with device 0 set in this thread. Kernel libraries find it by its soname, so it is loaded first."""
    runtime = _runtime()
    if code := runtime.aclrtSetDevice(0):
        raise RuntimeError(f"aclrtSetDevice: ACL error {code}")
    return runtime


@cache
def _runtime() -> ctypes.CDLL:
    runtime = ctypes.CDLL(str(prepare().library), mode=ctypes.RTLD_GLOBAL)
    runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p
    runtime.aclInit(None)
    return runtime


def check(code: int) -> None:
    if code:
        raise RuntimeError(f"ACL error {code}: {(acl().aclGetRecentErrMsg() or b'').decode()}")


@contextmanager
def on_device(tensor: torch.Tensor) -> Iterator[ctypes.c_void_p]:
    """Copies the tensor to a device allocation of its own, so that bounds are exact, and back at the end."""
    pointer = ctypes.c_void_p()
    bytes_ = tensor.numel() * tensor.element_size()
    check(acl().aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(max(bytes_, 1)), 0))
    host = ctypes.c_void_p(tensor.data_ptr())
    size = ctypes.c_size_t(bytes_)
    try:
        if bytes_:
            check(acl().aclrtMemcpy(pointer, size, host, size, HOST_TO_DEVICE))
        yield pointer
        if bytes_:
            check(acl().aclrtMemcpy(host, size, pointer, size, DEVICE_TO_HOST))
    finally:
        check(acl().aclrtFree(pointer))


def launch(launcher: Callable[..., Any], *arguments: Any) -> Outcome:
    """Calls launcher(stream, *arguments) on a new stream, so that a failed launch does not fail the next one."""
    stream = ctypes.c_void_p()
    check(acl().aclrtCreateStream(ctypes.byref(stream)))
    observe.clear_reports()
    try:
        launcher(stream, *arguments)
        code = acl().aclrtSynchronizeStream(stream)
        message = (acl().aclGetRecentErrMsg() or b"").decode() if code else ""
        (report,) = observe.reports()
        return Outcome(code, message, report)
    finally:
        acl().aclrtDestroyStreamForce(stream)
