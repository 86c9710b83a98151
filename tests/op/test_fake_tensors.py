# SPDX-License-Identifier: Apache-2.0
"""The three forms of the loss on tensors without data: FakeTensors, meta tensors, and a fake npu."""

from __future__ import annotations

import json
import subprocess
import sys

import fake_calls
import pytest
import torch
from fake_calls import CASES, forward_and_backward, looks
from probes import fresh_environment
from shapes import DTYPES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_features import needs_fake_npu


def real_looks(device: str, dtype: torch.dtype, reduction: str, asked: bool, name: str) -> dict[str, list[object]]:
    """The looks of real tensors on `device`, with `name` as the device."""
    real = looks(forward_and_backward(device, dtype, reduction, asked))
    return {form: [[*look[:3], name, look[4]] for look in of_form] for form, of_form in real.items()}


@pytest.mark.feature("FakeTensor")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("asked", [False, True])
def test_fake_outputs_look_like_real_ones(
    asked: bool, reduction: str, dtype: torch.dtype, device: torch.device
) -> None:
    real = looks(forward_and_backward(str(device), dtype, reduction, asked))
    with FakeTensorMode():
        assert looks(forward_and_backward(str(device), dtype, reduction, asked)) == real


@pytest.mark.feature("meta tensors")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("asked", [False, True])
def test_meta_outputs_look_like_real_ones(asked: bool, reduction: str, dtype: torch.dtype) -> None:
    meta = looks(forward_and_backward("meta", dtype, reduction, asked))
    assert meta == real_looks("cpu", dtype, reduction, asked, "meta")


@pytest.fixture(scope="module")
def on_fake_npu(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[object]]]:
    """The looks for each of CASES, from a process without NPU, torch_npu and compiler."""
    environment = fresh_environment(tmp_path_factory.mktemp("cache")) | {"PATH": ""}
    done = subprocess.run(
        [sys.executable, fake_calls.__file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.feature("fake npu device")
@needs_fake_npu
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_fake_npus_outputs_look_like_real_ones(case: tuple[str, str, bool], on_fake_npu: list) -> None:
    dtype, reduction, asked = case
    assert on_fake_npu[CASES.index(case)] == real_looks("cpu", getattr(torch, dtype), reduction, asked, "npu:0")
