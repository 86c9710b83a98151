# SPDX-License-Identifier: Apache-2.0
"""Operators that the virtual CANN lacks are refused by name, and every name that torch_npu requests exists."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch_npu
from locations import VIRTUAL_CANN
from torch_features import needs_listed_names
from virtual_process import run

RUNTIME = VIRTUAL_CANN / "runtime"
TORCH_NPU = Path(torch_npu.__file__).parent


REFUSED: dict[str, Callable[[], torch.Tensor]] = {
    "Cumsum": lambda: torch.cumsum(torch.ones(3).npu(), 0),
    "Softmax": lambda: torch.softmax(torch.ones(3).npu(), 0),
    "Normal": lambda: torch.randn(3, device="npu"),
    "Sort": lambda: torch.sort(torch.ones(3).npu())[0],
    "Index": lambda: torch.ones(3, 3).npu()[torch.tensor([1]).npu(), torch.tensor([1]).npu()],
    "Adds": lambda: torch.ones(3, dtype=torch.complex64).npu() + 1,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_compute_refuses_by_name_and_the_next_operator_works(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"(?s)aclnn(Inplace)?{name}.*the virtual CANN"):
        REFUSED[name]()
    assert (torch.ones(3).npu() + 1).tolist() == [2, 2, 2]


def operators_that_compute() -> set[str]:
    sources = [path.read_text("utf-8") for path in RUNTIME.glob("operators_*.cpp")]
    return {name for source in sources for name in re.findall(r"^ACLNN_OPERATOR\((\w+),", source, re.MULTILINE)}


@needs_listed_names
def test_every_operator_that_torch_npu_can_ask_for_computes_or_refuses() -> None:
    wheel = (TORCH_NPU / "lib/libtorch_npu.so").read_bytes()
    asked = {name.decode() for name in re.findall(rb"\0aclnn([A-Z]\w*?)(?:GetWorkspaceSize)?(?=\0)", wheel)}
    listed = set(re.findall(r"X\((\w+)\)", (RUNTIME / "operator_names.h").read_text("utf-8")))
    assert asked == listed
    computing = operators_that_compute()
    assert computing <= listed
    acl = ctypes.CDLL("libascendcl.so")
    acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
    for name in sorted(listed - computing):
        assert acl[f"aclnn{name}GetWorkspaceSize"]() == 200001
        assert f"aclnn{name} failed" in acl.aclGetRecentErrMsg().decode()


@needs_listed_names
def test_every_function_that_torch_npu_links_is_there_and_the_unmodelled_ones_refuse_by_name() -> None:
    nm = ["nm", "-D", "--undefined-only", *TORCH_NPU.glob("lib/libtorch_npu.so"), *TORCH_NPU.glob("_C.*.so")]
    symbols = subprocess.run(nm, check=True, capture_output=True, text=True).stdout
    linked = set(re.findall(r" U ((?:acl|rt[A-Z]|Msprof)\w+)$", symbols, re.MULTILINE))
    assert len(linked) > 50
    acl = ctypes.CDLL("libascendcl.so")
    acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
    for name in sorted(linked):
        assert hasattr(acl, name), name
    refused = re.findall(r"^(?:aclError|int) (\w+)\(", (RUNTIME / "refused.cpp").read_text("utf-8"), re.MULTILINE)
    assert set(refused) <= linked
    for name in refused:
        assert acl[name](*[None] * 6) == 200001
        assert f"{name} failed" in acl.aclGetRecentErrMsg().decode()


def test_an_operator_refused_on_the_queues_thread_leaves_no_junk_behind() -> None:
    """With this queue, the refusal comes late, and torch_npu silently drops all later work after one error."""
    code = """
import torch, torch_npu
def failed(act):
    try:
        act()
        torch.npu.synchronize()
    except RuntimeError as error:
        assert "aclnnCumsum" in str(error), error
        return True
assert failed(lambda: torch.cumsum(torch.ones(3).npu(), 0))
assert failed(lambda: torch.ones(3, device="npu").cpu())
"""
    done = run(code, TASK_QUEUE_ENABLE="2")
    assert done.returncode == 0, done.stderr
    assert "aclnnCumsum failed" in done.stderr, "torch_npu asks for ACL's text twice, and shows it there the first time"
