# SPDX-License-Identifier: Apache-2.0
"""opcheck and torch.compile. This file and others that trace also run in a process without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from probes import fresh_environment
from shapes import ON_NPU, logits, targets
from torch import Tensor, nn

from npu_ce_jit import cross_entropy, npu_cross_entropy_loss

OPS = torch.ops.npu_ce_jit


class Model(nn.Module):
    """A head and a loss, with all outputs of cross_entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 33)

    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        output = cross_entropy(
            self.head(hidden), target, label_smoothing=0.1, z_loss=1e-3, softcap=20.0, return_entropy=True
        )
        return output.loss, output.entropy


@pytest.mark.feature("torch.library.opcheck")
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


# Inductor needs a compiler for the device.
@pytest.mark.feature("torch.compile(fullgraph=True)")
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


@pytest.mark.exhaustive
@pytest.mark.skipif("NPU_CE_JIT_TEST_INNER" in os.environ, reason="this is the inner run")
def test_all_of_it_in_a_process_without_a_compiler(tmp_path: Path) -> None:
    """With an empty PATH and cache, import, tracing, export and the reference still work."""
    environment = fresh_environment(tmp_path) | {"PATH": "", "NPU_CE_JIT_TEST_INNER": "1"}
    here = Path(__file__).parent
    files = [here / f"test_{name}.py" for name in ("tracing", "fake_tensors", "export")]
    # Inductor needs a compiler. Tests that start processes set the environment of these themselves.
    selection = ["-k", "not inductor and not process and not fake_npu"]
    options = ["-q", "-W", "ignore::RuntimeWarning", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *files, *selection, *options],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
