# SPDX-License-Identifier: Apache-2.0
"""Programs that are exported for `npu` on a machine without one, and then run on one: torch_npu on the virtual CANN."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import saved_programs
from export_page import blocks, run_block
from locations import ON_NPU
from loss_forms import FORMS, assert_right, export
from probes import fresh_environment
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_features import needs_fake_npu
from toy_package import exit_code, fork

import npu_ce_jit

PYTHON_ON_NPU = (*ON_NPU, "python")


@needs_fake_npu
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
    done = saved_programs.run_all(tmp_path, "npu", python=PYTHON_ON_NPU)
    assert done.returncode == 0, done.stderr
    for name, form in FORMS.items():
        for strict in (False, True):
            for inputs, results in zip(calls[name], saved_programs.results(tmp_path, f"{name}-{strict}"), strict=True):
                assert_right(results, form, inputs)


@needs_fake_npu
@pytest.mark.exhaustive
def test_the_pages_export_runs_on_an_npu(tmp_path: Path) -> None:
    """Exported without a compiler. Its weights and hidden states are constant, so all classes are equally probable."""
    exported, loaded, *_ = blocks()
    done = run_block(exported, tmp_path, environment=fresh_environment(tmp_path / "cache") | {"PATH": ""})
    assert done.returncode == 0, done.stderr
    done = run_block(f"{loaded}\nprint(loss.device, loss.item())", tmp_path, PYTHON_ON_NPU)
    assert done.returncode == 0, done.stderr
    device, loss = done.stdout.split()[-2:]
    lse = 0.64 + math.log(1000)
    assert device == "npu:0"
    assert float(loss) == pytest.approx(math.log(1000) + 1e-4 * lse**2, rel=1e-6)
