# SPDX-License-Identifier: Apache-2.0
"""Which outputs of the CPU kernels request huge pages, according to the kernel's VmFlags of their memory."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from probes import needs_the_library

import npu_ce_jit
from npu_ce_jit import bootstrap
from npu_ce_jit.jit.toolchain.discovery import HUGE_PAGES_MIB

SMAPS = Path("/proc/self/smaps")
# VmFlags have hg after a request; a kernel without huge pages ignores requests.
pytestmark = [
    needs_the_library,
    pytest.mark.skipif(
        not SMAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
        reason="needs Linux with transparent huge pages: no /proc/self/smaps or /sys/kernel/mm/transparent_hugepage",
    ),
]


def asks_for_huge_pages(tensor: torch.Tensor) -> bool:
    middle = tensor.data_ptr() + tensor.nbytes // 2
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text("utf-8")):
        first, last = (int(number, 16) for number in mapping.split(maxsplit=1)[0].split("-"))
        if first <= middle < last:
            return "hg" in mapping.rpartition("VmFlags:")[2].split()
    raise AssertionError(f"{middle:x} is mapped nowhere")


@pytest.fixture
def set_limit() -> Iterator[Callable[[int], None]]:
    session = bootstrap.run()
    assert session.cpu.artifact is not None
    library = ctypes.CDLL(str(session.cpu.artifact.library))
    yield lambda most_mib: library.npu_ce_jit_set_huge_pages(ctypes.c_int(most_mib))
    usual = HUGE_PAGES_MIB[session.toolchain.huge_pages.require()]
    library.npu_ce_jit_set_huge_pages(ctypes.c_int(1 << 20 if usual is None else usual))


@pytest.mark.parametrize(
    ("most_mib", "expected"),
    [(0, [False, False]), (32, [True, False]), (64, [True, True]), (1 << 20, [True, True])],
)
def test_outputs_up_to_the_limit_ask_for_them(set_limit, most_mib, expected):
    set_limit(most_mib)
    asked = []
    for rows in (1 << 10, 1 << 11):  # gradients of 32 and 64 MiB
        logits = torch.zeros(rows, 1 << 13, requires_grad=True)
        npu_ce_jit.cross_entropy(logits, torch.zeros(rows, dtype=torch.int64)).backward()
        assert logits.grad is not None
        asked.append(asks_for_huge_pages(logits.grad))
    assert asked == expected
