# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit bench` on the CPU; tests/on_npu runs it on an NPU."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from npu_ce_jit.bench import cases, command
from npu_ce_jit.bench.command import run_bench
from npu_ce_jit.bench.implementations import IMPLEMENTATIONS, Implementation
from npu_ce_jit.bench.timing import interleaved, peak_allocated
from npu_ce_jit.errors import ToolchainError
from npu_ce_jit.npu import require_npu

FORMS = ("forward", "forward + backward")
DTYPES = ("float32", "bfloat16", "float16")


def report_of(capsys, *arguments):
    assert run_bench(["--quick", "--json", "--device", "cpu", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def ran(rows):
    return [row for row in rows if "not run" not in row]


def test_every_loss_is_there_in_every_dtype_form_and_shape(capsys):
    report = report_of(capsys, "5x70", "3x11x407")
    cases = {
        (row["loss"], row["dtype"], row["form"], row["rows"], row["features"], row["classes"]) for row in report["rows"]
    }
    shapes = {"cross_entropy": (5, 0, 70), "drop-in": (5, 0, 70), "linear": (3, 11, 407)}
    assert cases == {
        (loss, dtype, form, *shape) for loss, shape in shapes.items() for dtype in DTYPES for form in FORMS
    }
    assert report["torch"] == torch.__version__
    assert report["kernels"]
    for loss, dtype, form in {case[:3] for case in cases}:
        names = [
            row["implementation"]
            for row in report["rows"]
            if (row["loss"], row["dtype"], row["form"]) == (loss, dtype, form)
        ]
        those = [
            one.name
            for one in IMPLEMENTATIONS[loss]
            if one.device is None and (form != "forward" or not one.trains_only)
        ]
        assert names == [*those, "the limit"]


def test_the_figures_belong_together(capsys):
    rows = ran(report_of(capsys, "5x70", "6x9x70")["rows"])
    for row in rows:
        backward = row["form"] != "forward"
        if "milliseconds" not in row:
            assert row["implementation"].endswith(", for memory")
        elif row["loss"] == "linear":
            assert row["GFLOP/s"] * row["milliseconds"] * 1e6 == pytest.approx((3 if backward else 1) * 2 * 6 * 9 * 70)
        else:
            size = 5 * 70 * (4 if row["dtype"] == "float32" else 2)
            passes = (3 if backward else 1) + (row["loss"] == "drop-in")
            assert row["GB/s"] * row["milliseconds"] * 1e6 == pytest.approx(passes * size)
        if row["implementation"] == "the limit":
            assert row["share of the limit"] == 1
        else:
            assert row["value"] == pytest.approx(4.8, abs=1)  # ln 70, plus half the variance of the logits
        peers = {
            one["implementation"]
            for one in rows
            if not one["ours"] and one["loss"] == row["loss"] and "milliseconds" in one
        }
        assert set(row.get("times as fast as", ())) == (
            peers - {"the limit"} if row["ours"] and "milliseconds" in row else set()
        )


def test_memory_is_counted_over_the_inputs(capsys):
    """The memory that each loss must allocate, by its description, at a size where rows' statistics are negligible."""
    rows = ran(report_of(capsys, "64x4096")["rows"])
    peaks = {(row["implementation"], row["form"]): row["peak over logits"] for row in rows if "value" in row}
    logits_that_are_made = {
        "cross_entropy": (0, 1),
        "npu_cross_entropy_loss": (1, 2),
        "F.cross_entropy": (1, 3),
        "log_softmax + nll_loss": (1, 3),
    }
    for name, counts in logits_that_are_made.items():
        assert [peaks[name, form] for form in FORMS] == pytest.approx(counts, abs=0.02)
    assert peaks["cross_entropy, in place", "forward + backward"] == pytest.approx(0, abs=0.02)


def test_a_call_starts_with_the_logits_that_another_one_overwrote():
    """In place, each call overwrites the logits with its gradient."""
    seen = []

    def loss(x, target):
        seen.append(x.detach().clone())
        x.detach().fill_(0)
        return (x * 1).sum()

    cell = cases.Cell("cross_entropy", "forward + backward", "float32", 300, 300)
    effort = cases.Effort(rounds=2, seconds=9, compile=False)
    cases.measure(cell, [Implementation("overwrites", lambda: loss)], torch.device("cpu"), effort)
    first, *timed = seen
    assert len(timed) == 2
    assert all(torch.equal(first, one) and one.any() for one in timed)


def test_who_is_too_slow_for_rounds_is_timed_by_one_call(monkeypatch):
    monkeypatch.setattr(cases, "_PATIENCE_SECONDS", 0.0)
    calls = []

    def loss(x, target):
        calls.append(1)
        return x.sum()

    cell = cases.Cell("cross_entropy", "forward", "float32", 300, 300)
    effort = cases.Effort(rounds=2, seconds=9, compile=False)
    row, limit = cases.measure(cell, [Implementation("slow", lambda: loss)], torch.device("cpu"), effort)
    assert len(calls) == 1
    assert row["milliseconds"] > 0
    assert limit["share of the limit"] == 1


def test_a_peer_that_does_not_run_is_told_and_one_of_ours_is_a_failure(capsys, monkeypatch):
    def broken(x, target):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(F, "cross_entropy", broken)
    rows = [row for row in report_of(capsys, "5x70")["rows"] if row["loss"] == "cross_entropy"]
    failures = [row["not run"] for row in rows if row["implementation"] == "F.cross_entropy"]
    assert failures == ["RuntimeError: no such operator"] * 6
    assert all("F.cross_entropy" not in row["times as fast as"] for row in ran(rows) if row["ours"])

    of_ours = [
        one._replace(load=lambda: broken) if one.name == "cross_entropy" else one
        for one in IMPLEMENTATIONS["cross_entropy"]
    ]
    monkeypatch.setitem(command.IMPLEMENTATIONS, "cross_entropy", tuple(of_ours))
    assert run_bench(["--quick", "--device", "cpu", "5x70"]) == 1
    assert (
        "\ncross_entropy: cross_entropy not run in 6 of 6 cells: RuntimeError: no such operator\n"
        in capsys.readouterr().out
    )


def test_a_peer_that_is_not_installed_is_named_once(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", None)
    assert run_bench(["--quick", "--device", "cpu", "5x3x70"]) == 0
    reported = [line for line in capsys.readouterr().out.splitlines() if line.startswith("linear: Apple CCE not run")]
    (line,) = reported
    assert line.startswith("linear: Apple CCE not run in 6 of 6 cells: ModuleNotFoundError: ")
    assert "cut_cross_entropy" in line


@pytest.mark.parametrize("shape", ["5by7", "0x7", "5x", "5x7x9x2", "5x0x9", "-1x7", "5x7.0"])
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
    session = command.bootstrap.current()
    absent = session.toolchain.torch_npu_version._replace(value=None, where="no module torch_npu", hint="Install it.")
    without = session._replace(toolchain=session.toolchain.replace(torch_npu_version=absent))
    monkeypatch.setattr(command.bootstrap, "run", lambda: without)
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
    monkeypatch.setattr(torch, "device", lambda *place: place)  # "npu" is a device name only with torch_npu
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


def test_rounds_end_when_their_time_is_over_but_three_are_made():
    calls = []
    interleaved({"a": lambda: calls.append(1)}, rounds=50, seconds_at_most=0.0, warm_up=False)
    assert len(calls) == 3


def test_what_is_allocated_is_counted_at_its_peak():
    def call():
        torch.empty(3000, dtype=torch.uint8)  # freed at once
        return torch.empty(1000, dtype=torch.uint8), torch.empty(1500, dtype=torch.uint8)

    assert peak_allocated(call) == 3000
    assert peak_allocated(lambda: None) == 0
