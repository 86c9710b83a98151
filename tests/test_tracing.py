# SPDX-License-Identifier: Apache-2.0
"""FakeTensor, opcheck, torch.compile and torch.export; the same file runs in a process that has no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from probes import fresh_environment
from shapes import DTYPES, ON_NPU, logits, targets
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from npu_ce_jit import CrossEntropyOutput, cross_entropy, npu_cross_entropy_loss

OPS = torch.ops.npu_ce_jit


class Model(nn.Module):
    """A head and a loss, with everything that the lean loss can return."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 33)

    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        output = cross_entropy(
            self.head(hidden), target, label_smoothing=0.1, z_loss=1e-3, softcap=20.0, return_entropy=True
        )
        return output.loss, output.entropy


class DropIn(nn.Module):
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        loss, log_prob, zloss, _ = npu_cross_entropy_loss(x, target, None, "sum", -100, 0.1, 1e-3, True)
        return loss + zloss + log_prob.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_opcheck(weighted: bool, layout: str, reduction: str, dtype: torch.dtype) -> None:
    x, target = logits(6, 5, dtype), targets(6, 5, 0.2)
    target[0] = 1
    x = (x.t().contiguous().t() if layout == "transposed" else x).requires_grad_()
    weight = torch.rand(5) if weighted else None
    torch.library.opcheck(OPS.npu_cross_entropy_loss.default, (x, target, weight, reduction, -100, 0.1, 0.1, True))
    torch.library.opcheck(
        OPS.cross_entropy.default,
        (x, target, weight, reduction, -100, 0.1, 0.1, True, 5.0, 1.0, True, True, True, torch.float32),
    )
    loss, log_prob, zloss, lse = (
        t.detach() for t in npu_cross_entropy_loss(x, target, weight, reduction, -100, 0.1, 0.1, True)
    )
    arguments = (
        torch.ones_like(loss),
        log_prob,
        target,
        weight,
        torch.ones_like(zloss),
        lse,
        reduction,
        -100,
        0.1,
        0.1,
    )
    torch.library.opcheck(OPS.npu_cross_entropy_loss_backward.default, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("asked", [False, True])
def test_fake_outputs_look_like_real_ones(
    asked: bool, reduction: str, dtype: torch.dtype, device: torch.device
) -> None:
    def run() -> list[Tensor]:
        x = torch.zeros(6, 5, dtype=dtype, device=device, requires_grad=True)
        target = torch.zeros(6, dtype=torch.int64, device=device)
        scale = 0.1 if asked else 0.0
        lean = OPS.cross_entropy(x, target, None, reduction, -100, 0.0, scale, asked, None, 1.0, asked, asked, asked)
        drop_in = OPS.npu_cross_entropy_loss(x, target, None, reduction, -100, 0.0, scale, asked)
        (gradient,) = torch.autograd.grad(lean[0].sum() + drop_in[0].sum(), x)
        return [*lean, *drop_in, gradient]

    with FakeTensorMode():
        fake = run()
    for ours, real in zip(fake, run(), strict=True):
        assert (ours.shape, ours.dtype, ours.stride()) == (real.shape, real.dtype, real.stride())
        assert ours.device == real.device
        assert ours.requires_grad == real.requires_grad


# Inductor needs a compiler for the device.
@pytest.mark.parametrize("backend", ["aot_eager", *([] if ON_NPU else ["inductor"])])
def test_compile_fullgraph(backend: str, device: torch.device) -> None:
    model = Model().to(device)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    hidden, target = torch.randn(6, 8).to(device), targets(6, 33, 0.2).to(device)
    gradients = []
    for call in (model, compiled):
        model.zero_grad()
        loss, entropy = call(hidden, target)
        (loss + entropy.sum()).backward()
        gradients.append([t.detach().cpu().clone() for t in (loss, entropy, model.head.weight.grad)])
    torch.testing.assert_close(*gradients)


def test_one_graph_for_every_number_of_rows(device: torch.device) -> None:
    counter = CompileCounter()
    compiled = torch.compile(DropIn(), backend=counter, fullgraph=True)
    for rows in (6, 7, 9, 50):
        x, target = torch.randn(rows, 5).to(device), targets(rows, 5).to(device)
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(target, 0)
        torch.testing.assert_close(compiled(x, target).cpu(), DropIn()(x, target).cpu())
    assert counter.frame_count == 1


def test_compile_of_every_public_form(device: torch.device) -> None:
    x, target = torch.randn(4, 6, 3).to(device), torch.randint(6, (4, 3)).to(device)

    def forms(x: Tensor, target: Tensor) -> list[Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            half = cross_entropy(x.bfloat16(), target)
        in_place = cross_entropy(x[..., 0].contiguous(), target[:, 0], inplace_backward=True)
        losses = cross_entropy(x, target), half, in_place, cross_entropy(x[0, :, 0], target[0, 0])
        return [loss.cpu() for loss in losses]

    compiled = torch.compile(forms, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, target), forms(x, target))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize(
    ("model", "make", "name"),
    [
        (Model, lambda n: (torch.randn(n, 8), targets(n, 33)), "npu_ce_jit.cross_entropy.default"),
        (DropIn, lambda n: (torch.randn(n, 33), targets(n, 33)), "npu_ce_jit.npu_cross_entropy_loss.default"),
    ],
    ids=["lean", "drop-in"],
)
def test_export_keeps_one_node_and_any_number_of_rows(
    model: type[nn.Module], make: object, name: str, strict: bool, tmp_path: Path, device: torch.device
) -> None:
    def inputs(n: int) -> tuple[Tensor, ...]:
        return tuple(tensor.to(device) for tensor in make(n))

    def on_cpu(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
        return [output.cpu() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]

    module, rows = model().to(device), Dim("rows", min=2)
    program = torch.export.export(module, inputs(6), dynamic_shapes=({0: rows}, {0: rows}), strict=strict)
    ours = [str(node.target) for node in program.graph.nodes if "npu_ce_jit" in str(node.target)]
    assert ours == [name]
    torch.export.save(program, tmp_path / "model.pt2")
    reloaded = torch.export.load(tmp_path / "model.pt2").module()
    for n in (2, 6, 11):
        arguments = inputs(n)
        torch.testing.assert_close(on_cpu(reloaded(*arguments)), on_cpu(module(*arguments)))


def test_a_program_that_returns_the_named_tuple_can_be_saved(tmp_path: Path) -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor, target: Tensor) -> CrossEntropyOutput:
            return cross_entropy(x, target, reduction="none", return_lse=True)

    inputs = (torch.randn(5, 7), targets(5, 7))
    torch.export.save(torch.export.export(Rows(), inputs), tmp_path / "rows.pt2")
    reloaded = torch.export.load(tmp_path / "rows.pt2").module()
    torch.testing.assert_close(reloaded(*inputs).lse, inputs[0].logsumexp(1))


def test_an_exported_program_trains(device: torch.device) -> None:
    x, target = torch.randn(5, 33).to(device).requires_grad_(), targets(5, 33).to(device)
    program = torch.export.export(DropIn(), (x, target))
    (ours,) = torch.autograd.grad(program.module()(x, target).sum(), x)
    (expected,) = torch.autograd.grad(DropIn()(x, target).sum(), x)
    torch.testing.assert_close(ours.cpu(), expected.cpu())


@pytest.mark.skipif("NPU_CE_JIT_TEST_INNER" in os.environ, reason="this is the inner run")
def test_all_of_it_in_a_process_without_a_compiler(tmp_path: Path) -> None:
    """PATH is empty and so is the cache: import, tracing, export and the reference still work."""
    environment = fresh_environment(tmp_path) | {"PATH": "", "NPU_CE_JIT_TEST_INNER": "1"}
    selection = [
        str(Path(__file__)),
        "-k",
        "not inductor",
        "-q",
        "-W",
        "ignore::RuntimeWarning",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *selection], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
