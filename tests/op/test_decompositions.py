# SPDX-License-Identifier: Apache-2.0
"""`npu_ce_jit.decompositions()`: programs of torch's own operators that give our numbers without this package."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import saved_programs
import torch
from export_page import blocks, run_block
from loss_forms import FORMS, Form, assert_right, export
from oracle import Options, truth
from pages import needs_the_pages
from saved_programs import outputs_and_gradient
from shapes import targets
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, default_decompositions
from torch.export.experimental import _export_forward_backward

from npu_ce_jit import cross_entropy, decompositions, linear_cross_entropy, npu_cross_entropy_loss_backward
from npu_ce_jit.op import schema

SIZES = [(6, 33), (2, 2), (11, 40)]  # the first ones are used to export
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
pytestmark = pytest.mark.feature("decompositions into torch's own operators")


def decomposed(program: ExportedProgram) -> ExportedProgram:
    program = program.run_decompositions(decompositions())
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {name for name in operators if "npu_ce_jit" in name}
    return program


def test_every_operator_that_a_program_may_hold_is_in_the_table() -> None:
    """`_backward_` is in no program: traced code does not write in place."""
    names = {operator.name() for operator in decompositions()}
    assert names == {f"npu_ce_jit::{name}" for name in schema.SCHEMAS if name != "_backward_"}


@EVERY_FORM
def test_together_with_torchs_own_table(form: Form) -> None:
    calls = [form.inputs(*sizes) for sizes in SIZES]
    table = default_decompositions()
    table.update(decompositions())
    program = export(form, calls[0]).run_decompositions(table).module()
    for inputs in calls:
        assert_right(outputs_and_gradient(program, inputs), form, inputs)


def test_programs_run_where_the_package_is_not(tmp_path: Path) -> None:
    calls = {name: [form.inputs(*sizes) for sizes in SIZES] for name, form in FORMS.items()}
    for name, form in FORMS.items():
        program = decomposed(export(form, calls[name][0], strict=name == "cross_entropy"))
        saved_programs.save(tmp_path, name, program, calls[name])
    done = saved_programs.run_all(tmp_path, package="without")
    assert done.returncode == 0, done.stderr
    for name, form in FORMS.items():
        for inputs, results in zip(calls[name], saved_programs.results(tmp_path, name), strict=True):
            assert_right(results, form, inputs)


class Head(nn.Module):
    """A layer and one form of the loss, summed to one number, as at the end of a training step."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(33, 5))
        self.loss, self.takes_layer = FORMS[form].module(), form == "linear"

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        arguments = (hidden, self.weight) if self.takes_layer else (hidden @ self.weight.t(),)
        return self.loss(*arguments, target)[0].sum()


TRAIN = """
import sys, torch
sys.modules["npu_ce_jit"] = None
program = torch.export.load(sys.argv[1])
torch.save([program.graph_module(*inputs) for inputs in torch.load(sys.argv[2])], sys.argv[3])
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FORMS)
def test_a_training_program_with_its_backward_runs_where_the_package_is_not(name: str, tmp_path: Path) -> None:
    model, rows = Head(name), Dim("N", min=2)
    batches = [(torch.randn(n, 5), targets(n, 33)) for n in (6, 2, 11)]
    program = torch.export.export(model, batches[0], dynamic_shapes=({0: rows}, {0: rows}))
    torch.export.save(decomposed(_export_forward_backward(program)), tmp_path / "step.pt2")
    torch.save([(model.weight.detach(), *batch) for batch in batches], tmp_path / "calls")
    command = [sys.executable, "-c", TRAIN, *(tmp_path / part for part in ("step.pt2", "calls", "results"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for batch, (loss, gradient) in zip(batches, torch.load(tmp_path / "results"), strict=True):
        expected = model(*batch)
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(gradient, *torch.autograd.grad(expected, model.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_every_dtype_is_computed_in_its_accumulation_dtype(reduction: str, dtype: torch.dtype) -> None:
    """A loss that is not rounded itself is exact to float32, or float64, for the rounded logits."""
    options = Options(reduction, -100, 0.1, 1e-2, 9.0, 0.7)

    class Loss(nn.Module):
        def forward(self, x: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            return cross_entropy(
                x, target, weight, reduction, -100, 0.1, z_loss=1e-2, softcap=9.0, logit_scale=0.7,
                loss_dtype=torch.promote_types(dtype, torch.float32), return_z_loss=True, return_lse=True,
                return_argmax=True, return_entropy=True,
            )  # fmt: skip

    x, target, weight = (3 * torch.randn(7, 13)).to(dtype), targets(7, 13), torch.rand(13) + 0.1
    target[2] = -100
    program = decomposed(torch.export.export(Loss(), (x, target, weight))).module()
    output, real = program(x, target, weight), Loss()(x, target, weight)
    right = truth(x.double(), target, weight.double(), options)
    for name in ("loss", "z_loss", "lse", "argmax", "entropy"):
        ours = getattr(output, name)
        assert (ours.dtype, ours.shape) == (getattr(real, name).dtype, getattr(real, name).shape)
        rtol = 1e-12 if dtype is torch.float64 else 2e-6
        torch.testing.assert_close(ours, getattr(right, name), rtol=rtol, atol=rtol, check_dtype=False)


def test_the_drop_ins_backward() -> None:
    class Backward(nn.Module):
        def forward(self, grad_loss: Tensor, log_prob: Tensor, target: Tensor, lse: Tensor) -> Tensor:
            return npu_cross_entropy_loss_backward(
                grad_loss, log_prob, target, None, grad_loss, lse, lse_square_scale_for_zloss=0.1
            )

    x = torch.randn(5, 7)
    inputs = (torch.rand(1), x.log_softmax(1), targets(5, 7), x.logsumexp(1))
    program = decomposed(torch.export.export(Backward(), inputs)).module()
    torch.testing.assert_close(program(*inputs), Backward()(*inputs))


def test_a_linear_loss_with_bias_in_bfloat16() -> None:
    class Loss(nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
            return linear_cross_entropy(x, weight, target, linear_bias=bias, loss_dtype=torch.float32, softcap=5.0)

    inputs = (*(torch.randn(shape).bfloat16() for shape in ((6, 5), (7, 5), (7,))), targets(6, 7))
    program = decomposed(torch.export.export(Loss(), inputs)).module()
    torch.testing.assert_close(program(*inputs), Loss()(*inputs), rtol=1e-2, atol=1e-2)  # its logits are bfloat16


def test_a_target_out_of_range_is_still_no_number() -> None:
    class Loss(nn.Module):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return cross_entropy(x, target)

    inputs = (torch.randn(3, 5), targets(3, 5))
    program = decomposed(torch.export.export(Loss(), inputs)).module()
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        program(inputs[0], torch.tensor([0, 5, 1]))


@needs_the_pages
def test_the_pages_program_runs_where_the_package_is_not(tmp_path: Path) -> None:
    _, _, saved, loaded, *_ = blocks()
    done = run_block(saved, tmp_path)
    assert done.returncode == 0, done.stderr
    without = 'import sys\nsys.modules["npu_ce_jit"] = None\n'
    done = run_block(f"{without}{loaded}\nprint(loss.item())", tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(math.log(1000) + 1e-4 * math.log(1000) ** 2, rel=1e-6)
