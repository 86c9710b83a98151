# SPDX-License-Identifier: Apache-2.0
"""Programs that are exported for `npu` where there is none, and then run on one: torch_npu on the virtual CANN."""

from __future__ import annotations

from pathlib import Path

import pytest
import saved_programs
import torch
from loss_forms import FORMS, assert_right, export
from npu_runs import HERE
from toy_package import exit_code, fork
from torch._subclasses.fake_tensor import FakeTensorMode

import npu_ce_jit

ON_NPU = (HERE / "virtual_cann/run", "python")


@pytest.mark.feature("export for npu without an NPU")
def test_a_program_exported_without_an_npu_runs_on_one(tmp_path: Path) -> None:
    calls = {name: [form.inputs(*sizes) for sizes in ((6, 33), (2, 2), (11, 40))] for name, form in FORMS.items()}

    def export_all() -> None:
        npu_ce_jit.register_fake_npu()
        for name, form in FORMS.items():
            with FakeTensorMode():
                inputs = saved_programs.on("npu", form.inputs(6, 33))
            for strict in (False, True):
                program = export(form, inputs, strict)
                program.example_inputs = None
                saved_programs.save(tmp_path, f"{name}-{strict}", program, calls[name])

    assert exit_code(fork(export_all)) == 0
    done = saved_programs.run_all(tmp_path, "npu", python=ON_NPU)
    assert done.returncode == 0, done.stderr
    for name, form in FORMS.items():
        for strict in (False, True):
            for inputs, results in zip(calls[name], saved_programs.results(tmp_path, f"{name}-{strict}"), strict=True):
                assert_right(results, form, inputs)
