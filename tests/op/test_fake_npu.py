# SPDX-License-Identifier: Apache-2.0
"""`register_fake_npu`: where it registers a device, where it refuses, and what the device refuses."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loss_forms import FORMS, export
from saved_programs import on
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_features import needs_fake_npu
from toy_package import exit_code, fork

import npu_ce_jit
from npu_ce_jit import fake_npu
from npu_ce_jit.errors import FakeNpuError

pytestmark = pytest.mark.feature("fake npu device")


def in_a_child(task: Callable[[], object]) -> None:
    """Registering a device cannot be undone, so no test may do it in its own process."""
    assert exit_code(fork(task)) == 0


@needs_fake_npu
def test_it_registers_once_and_more_calls_do_nothing() -> None:
    def task() -> None:
        npu_ce_jit.register_fake_npu()
        npu_ce_jit.register_fake_npu()
        for name in [name for name in sys.modules if name.partition(".")[0] == "npu_ce_jit"]:
            del sys.modules[name]
        importlib.import_module("npu_ce_jit").register_fake_npu()
        with FakeTensorMode():
            assert torch.empty(2, device="npu").device == torch.device("npu:0")
        torch.manual_seed(0)
        assert not torch.npu.is_available()
        assert not torch.accelerator.is_available()

    in_a_child(task)


def test_it_refuses_where_torch_npu_is_installed(tmp_path: Path) -> None:
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu/__init__.py").touch()

    def task() -> None:
        sys.path.insert(0, str(tmp_path))
        with pytest.raises(FakeNpuError, match=r"without torch_npu.*Import torch_npu"):
            npu_ce_jit.register_fake_npu()
        assert torch._C._get_privateuse1_backend_name() == "privateuseone"

    in_a_child(task)


@pytest.mark.parametrize("is_named", [True, False])
def test_it_refuses_where_another_backend_is(is_named: bool) -> None:
    def task() -> None:
        if is_named:
            torch.utils.rename_privateuse1_backend("other")
        else:
            torch._register_device_module("privateuseone", object())
        with pytest.raises(FakeNpuError, match=r"got '(other|privateuseone)': there is room for one"):
            npu_ce_jit.register_fake_npu()

    in_a_child(task)


def test_it_refuses_where_torch_has_no_backends_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_npu, "set_up_python_backend", None)
    with pytest.raises(FakeNpuError, match=r"expected torch 2\.10 or later for a fake npu, got"):
        npu_ce_jit.register_fake_npu()
    assert torch._C._get_privateuse1_backend_name() == "privateuseone"


@needs_fake_npu
def test_what_would_compute_is_refused_by_name() -> None:
    asked = (
        (lambda: torch.empty(2, device="npu"), "aten::empty"),
        (lambda: torch.randn(2, device="npu"), "aten::empty"),
        (lambda: nn.Linear(2, 2, device="npu"), "aten::empty"),
        (lambda: torch.ones(2).to("npu"), "aten::empty_strided"),
        (lambda: nn.Linear(2, 2).npu(), "aten::empty_strided"),
    )

    def task() -> None:
        npu_ce_jit.register_fake_npu()
        for ask, name in asked:
            with pytest.raises(FakeNpuError, match=f"got {name}.* on real ones: this npu has shapes and no data"):
                ask()

    in_a_child(task)


@needs_fake_npu
def test_autocast_is_refused() -> None:
    def task() -> None:
        npu_ce_jit.register_fake_npu()
        with pytest.raises(FakeNpuError, match="expected no autocast on a fake npu"):
            torch.autocast("npu", torch.bfloat16)

    in_a_child(task)


@needs_fake_npu
def test_a_dtype_that_no_npu_takes_is_refused() -> None:
    def task() -> None:
        npu_ce_jit.register_fake_npu()
        with FakeTensorMode():
            x, target = torch.zeros(2, 3, dtype=torch.float64, device="npu"), torch.zeros(2, dtype=torch.int64).npu()
            with pytest.raises(NotImplementedError, match="float64 on npu"):
                npu_ce_jit.cross_entropy(x, target)

    in_a_child(task)


@needs_fake_npu
def test_a_program_for_npu_is_decomposed_without_one_and_holds_no_float64() -> None:
    def task() -> None:
        npu_ce_jit.register_fake_npu()
        for form in FORMS.values():
            with FakeTensorMode():
                inputs = on("npu", form.inputs(6, 33))
            program = export(form, inputs).run_decompositions(npu_ce_jit.decompositions())
            values = [node.meta["val"] for node in program.graph.nodes if "val" in node.meta]
            tensors = [value for value in values if isinstance(value, torch.Tensor)]
            assert {tensor.device for tensor in tensors} == {torch.device("npu:0")}
            assert torch.float64 not in {tensor.dtype for tensor in tensors}

    in_a_child(task)
