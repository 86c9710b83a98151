# SPDX-License-Identifier: Apache-2.0
"""Kernels of an npu that are replaced in the running process. The factor SCALE of the loss tells them apart."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401
from edited_sources import RIGHT, TARGET, X, doubling, scale

import npu_ce_jit
from npu_ce_jit import bootstrap, cross_entropy
from npu_ce_jit.errors import SelfCheckError


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    return doubling(tmp_path_factory.mktemp("edited"), "npu")


@pytest.fixture(autouse=True)
def _installed_kernels() -> Iterator[None]:
    assert scale("npu") == 1
    yield
    npu_ce_jit.rebuild(device="npu")
    assert scale("npu") == 1


def test_the_next_call_runs_the_new_kernels_and_what_is_queued_runs_the_old_ones(doubled: Callable[..., Any]) -> None:
    there, target = X.npu(), TARGET.npu()
    compiled = torch.compile(cross_entropy, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(there, target).cpu(), RIGHT)
    doubled(check=False)  # builds, so that the next rebuild is immediate
    npu_ce_jit.rebuild(device="npu")
    queued = [cross_entropy(there, target) for _ in range(50)]
    result = doubled(check=False)
    new = [cross_entropy(there, target), compiled(there, target)]
    torch.testing.assert_close(torch.stack(queued).cpu(), RIGHT.expand(50))
    torch.testing.assert_close(torch.stack(new).cpu(), 2 * RIGHT.expand(2))
    leaf, true = there.requires_grad_(), X.clone().requires_grad_()
    cross_entropy(leaf, target).backward()
    F.cross_entropy(true, TARGET).backward()
    torch.testing.assert_close(leaf.grad.cpu(), true.grad)
    assert (result["npu"]["state"], result["npu"]["built"]) == ("loaded", False)
    assert npu_ce_jit.info()["npu"]["library"] == result["npu"]["library"]
    mapped = re.findall(r"\S+/libnpu_ce_kernels\S+", Path("/proc/self/maps").read_text("utf-8"))
    assert len(set(mapped)) == 2, "each glue has its own kernels"


def test_wrong_kernels_are_refused_and_the_entry_is_not_rejected(doubled: Callable[..., Any]) -> None:
    before = bootstrap.current()
    with pytest.raises(SelfCheckError, match=r"The NPU kernels fail .* expected loss\[0\] = "):
        doubled()
    assert scale("npu") == 1
    assert bootstrap.current().npu.artifact == before.npu.artifact
    assert doubled(check=False)["npu"]["built"] is False
    assert scale("npu") == 2


def test_calls_in_another_thread_run_on_one_set_of_kernels_or_the_other(doubled: Callable[..., Any]) -> None:
    doubled(check=False)
    stop = threading.Event()
    seen: list[float] = []

    def calls() -> None:
        while not stop.is_set():
            seen.append(scale("npu"))
        seen.append(0)

    thread = threading.Thread(target=calls)
    thread.start()
    for _ in range(5):
        npu_ce_jit.rebuild(device="npu")
        doubled(check=False)
    stop.set()
    thread.join()
    assert seen[-1] == 0, "no call failed"
    assert set(seen[:-1]) <= {1.0, 2.0}
