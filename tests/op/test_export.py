# SPDX-License-Identifier: Apache-2.0
"""torch.export and AOTInductor: one node of ours, for any number of rows and classes, also run in another process."""

from __future__ import annotations

from pathlib import Path

import pytest
import saved_programs
import torch
from export_page import blocks, run_block
from loss_forms import FORMS, Form, assert_right, export
from pages import needs_the_pages
from probes import needs_the_library
from saved_programs import on, outputs_and_gradient
from shapes import targets
from torch import Tensor, nn
from torch_features import needs_aot_inductor, needs_error_of_programs

from npu_ce_jit import CrossEntropyOutput, cross_entropy

SIZES = [(6, 33), (2, 2), (11, 40)]  # the first ones are used to export
MODES = pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.mark.feature("torch.export, strict and not, with dynamic N and C")
@MODES
@EVERY_FORM
def test_a_program_keeps_one_node_for_any_number_of_rows_and_classes(
    form: Form, strict: bool, tmp_path: Path, device: torch.device
) -> None:
    calls = [on(device, form.inputs(*sizes)) for sizes in SIZES]
    program = export(form, calls[0], strict)
    assert [str(n.target) for n in program.graph.nodes if "npu_ce_jit" in str(n.target)] == [form.operator]
    torch.export.save(program, tmp_path / "loss.pt2")
    reloaded = torch.export.load(tmp_path / "loss.pt2").module()
    for inputs in calls:
        assert_right(outputs_and_gradient(reloaded, inputs), form, inputs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the exported program of each form and mode."""
    directory = tmp_path_factory.mktemp("saved")
    for name, form in FORMS.items():
        calls = [form.inputs(*sizes) for sizes in SIZES]
        for strict in (False, True):
            saved_programs.save(directory, f"{name}-{strict}", export(form, calls[0], strict), calls)
    return directory


@pytest.mark.feature("exported program in a fresh process")
def test_saved_programs_run_in_a_process_that_imports_the_package(saved: Path) -> None:
    done = saved_programs.run_all(saved)
    assert done.returncode == 0, done.stderr
    for name, form in FORMS.items():
        for strict in (False, True):
            calls = torch.load(saved / f"{name}-{strict}.calls")
            for inputs, results in zip(calls, saved_programs.results(saved, f"{name}-{strict}"), strict=True):
                assert_right(results, form, inputs)


@needs_error_of_programs
def test_a_process_without_the_package_is_told_what_to_import(saved: Path) -> None:
    done = saved_programs.run_all(saved, package="without")
    assert done.returncode != 0
    assert "We failed to resolve torch.ops.npu_ce_jit.cross_entropy.default to an operator" in done.stderr
    assert "Please import the custom op to register it before deserializing" in done.stderr
    assert "We ran into an error when deserializing the saved file" in done.stderr.splitlines()[-1]


def test_a_program_that_returns_the_named_tuple_can_be_saved(tmp_path: Path) -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor, target: Tensor) -> CrossEntropyOutput:
            return cross_entropy(x, target, reduction="none", return_lse=True)

    inputs = (torch.randn(5, 7), targets(5, 7))
    torch.export.save(torch.export.export(Rows(), inputs), tmp_path / "rows.pt2")
    reloaded = torch.export.load(tmp_path / "rows.pt2").module()
    torch.testing.assert_close(reloaded(*inputs).lse, inputs[0].logsumexp(1))


class EveryForm(nn.Module):
    """All forms in one program, because compiling a package takes a minute."""

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        outputs, rest = [], list(inputs)
        for form in FORMS.values():
            arguments = [rest.pop(0) for _ in form.sizes]
            outputs += form.module()(*arguments)
        return outputs


@pytest.mark.feature("AOTInductor package")
@needs_aot_inductor
@needs_the_library
@needs_the_pages
def test_aot_inductor_package_with_any_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [[tensor.detach() for form in FORMS.values() for tensor in form.inputs(rows, 7)] for rows in (6, 2, 11)]
    rows = torch.export.Dim("N", min=2)
    dynamic = tuple({d: rows for d, s in names.items() if s == "N"} for f in FORMS.values() for names in f.sizes)
    program = torch.export.export(EveryForm(), tuple(calls[0]), dynamic_shapes=(dynamic,))
    *_, compiled, loaded = blocks()
    monkeypatch.chdir(tmp_path)
    exec(compiled, {"torch": torch, "program": program})
    torch.save(calls, "calls")
    answers = 'torch.save([model(*inputs) for inputs in torch.load("calls")], "answers")'
    done = run_block(loaded + answers, tmp_path)
    assert done.returncode == 0, done.stderr
    for inputs, outputs in zip(calls, torch.load("answers"), strict=True):
        torch.testing.assert_close(outputs, EveryForm()(*inputs))
    done = run_block(loaded.replace("import npu_ce_jit", ""), tmp_path)
    assert "Could not find schema for npu_ce_jit::" in done.stderr
