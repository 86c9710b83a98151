# SPDX-License-Identifier: Apache-2.0
"""torch.jit.trace of the three forms, saved, and loaded in a process that has called nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forms import FORMS, gradients, operands

RELOAD = """
import sys, torch, npu_ce_jit
program = torch.jit.load(sys.argv[1])
*tensors, loss, grad_hidden, grad_head = torch.load(sys.argv[2])
leaves = [tensor.requires_grad_() for tensor in tensors[:2]]
value = program(*leaves, *tensors[2:])
torch.testing.assert_close(value.detach(), loss)
torch.testing.assert_close(torch.autograd.grad(value, leaves), (grad_hidden, grad_head))
"""


@pytest.mark.feature("torch.jit.trace")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
def test_a_traced_program_computes_and_trains_in_a_fresh_process(form: str, tmp_path: Path) -> None:
    program = torch.jit.trace(FORMS[form].loss, operands(dtype=torch.float32))
    ours = [node.kind() for node in program.graph.nodes() if node.kind().startswith("npu_ce_jit")]
    assert ours == [FORMS[form].public.name()]
    program.save(str(tmp_path / "program.pt"))
    others = operands(dtype=torch.float32)
    torch.save((*others, *gradients(FORMS[form].loss, *others)), tmp_path / "tensors.pt")
    arguments = [str(tmp_path / "program.pt"), str(tmp_path / "tensors.pt")]
    run = subprocess.run([sys.executable, "-c", RELOAD, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
