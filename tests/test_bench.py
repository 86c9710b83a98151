# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit bench` on the CPU; tests/on_npu runs it on an NPU."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from npu_ce_jit import bench
from npu_ce_jit.bench import run_bench
from npu_ce_jit.devices import require_npu
from npu_ce_jit.errors import ToolchainError
from npu_ce_jit.measure import interleaved

LOSSES = ["cross_entropy", "npu_cross_entropy_loss", "F.cross_entropy"]


def report_of(capsys, *arguments):
    assert run_bench(["--quick", "--json", "--device", "cpu", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_loss_is_there_in_every_dtype_form_and_shape(capsys):
    report = report_of(capsys, "5x70", "3x4097")
    cases = [(row["dtype"], row["rows"], row["classes"], row["form"], row["loss"]) for row in report["rows"]]
    assert cases == [
        (dtype, *shape, form, loss)
        for dtype in ("float32", "bfloat16", "float16")
        for shape in ((5, 70), (3, 4097))
        for form in ("forward", "forward + backward")
        for loss in LOSSES
    ]
    assert report["torch"] == torch.__version__
    assert report["kernels"]


def test_the_figures_belong_together(capsys):
    passes = {"forward": (1, 2, 1), "forward + backward": (3, 4, 3)}  # with log_prob, one more
    for row in report_of(capsys, "5x70")["rows"]:
        size = 5 * 70 * (4 if row["dtype"] == "float32" else 2)
        moved = passes[row["form"]][LOSSES.index(row["loss"])] * size
        assert row["GB/s"] * row["milliseconds"] * 1e6 == pytest.approx(moved)
        assert row["value"] == pytest.approx(4.8, abs=1)  # ln 70, and half the variance of the logits
        assert list(row["times as fast as"]) == (["F.cross_entropy"] if row["loss"] in LOSSES[:2] else [])


def test_a_peer_that_does_not_run_is_told_and_one_of_ours_is_a_failure(capsys, monkeypatch):
    def broken(x, target):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(F, "cross_entropy", broken)
    rows = report_of(capsys, "5x70")["rows"]
    failures = [row["not run"] for row in rows if "not run" in row]
    assert failures == ["RuntimeError: no such operator"] * 6
    assert all(row["times as fast as"] == {} for row in rows if row["loss"] in LOSSES[:2])

    monkeypatch.setattr(bench, "cross_entropy", broken)
    assert run_bench(["--quick", "--device", "cpu", "5x70"]) == 1
    assert "cross_entropy                    not run: RuntimeError: no such operator\n" in capsys.readouterr().out


@pytest.mark.parametrize("shape", ["5by7", "0x7", "5x", "5x7x9", "-1x7", "5x7.0"])
def test_a_shape_that_is_none_is_told(capsys, shape):
    with pytest.raises(SystemExit) as caught:
        run_bench(["--device", "cpu", "--", shape])
    assert caught.value.code == 2
    assert "expected NxC" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--frobnicate"], ["--device", "gpu"]])
def test_unknown_arguments_are_told(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        run_bench(arguments)
    assert caught.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_an_npu_that_is_not_here_is_told_with_what_to_do(capsys, monkeypatch):
    session = bench.bootstrap.current()
    absent = session.toolchain.torch_npu_version._replace(value=None, where="no module torch_npu", cure="Install it.")
    without = session._replace(toolchain=session.toolchain.replace(torch_npu_version=absent))
    monkeypatch.setattr(bench.bootstrap, "run", lambda: without)
    with pytest.raises(SystemExit) as caught:
        run_bench(["--device", "npu"])
    assert caught.value.code == 2
    assert "No torch_npu: no module torch_npu. Install it." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("torch_npu", "count", "said"),
    [
        (None, 1, "No NPU: torch_npu raised ModuleNotFoundError: import of torch_npu halted"),
        (types.ModuleType("torch_npu"), 0, "No NPU: torch_npu sees no device."),
        (types.ModuleType("torch_npu"), 2, None),
    ],
    ids=["no torch_npu", "no device", "two devices"],
)
def test_the_first_npu_or_why_there_is_none(monkeypatch, torch_npu, count, said):
    backend = types.SimpleNamespace(device_count=lambda: count)
    monkeypatch.setitem(sys.modules, "torch_npu", torch_npu)
    monkeypatch.setattr(torch, "get_device_module", lambda name: backend)
    monkeypatch.setattr(torch, "device", lambda *place: place)  # "npu" is a name that torch_npu registers
    if said is None:
        assert require_npu() == ("npu", 0)
    else:
        with pytest.raises(ToolchainError, match=said) as caught:
            require_npu()
        assert "npu-smi info" in caught.value.hint


def test_who_works_on_after_the_call_is_waited_for_before_and_after_each_time():
    events = []
    interleaved({"a": lambda: events.append("call")}, rounds=2, calls=3, wait=lambda: events.append("wait"))
    assert events == ["call", *["wait", "call", "call", "call", "wait"] * 2]
