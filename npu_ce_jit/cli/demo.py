# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit demo`: compute, compare with PyTorch, trace and export, on the CPU."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from npu_ce_jit import bootstrap
from npu_ce_jit.api.cross_entropy import cross_entropy, npu_cross_entropy_loss
from npu_ce_jit.bench.timing import interleaved, median_ratio, peak_memory, undisturbed


def _drop_in(x: Tensor, target: Tensor) -> Tensor:
    return npu_cross_entropy_loss(x, target)[0].sum()


def _loss(x: Tensor, target: Tensor) -> Tensor:
    loss = cross_entropy(x, target)
    assert isinstance(loss, Tensor)  # nothing else was asked for
    return loss


class Case(NamedTuple):
    title: str
    rows: int
    classes: int
    dtype: torch.dtype
    ours: Callable[[Tensor, Tensor], Tensor]


CASES = (
    Case("the vendor's example: npu_cross_entropy_loss, float32", 4096, 8080, torch.float32, _drop_in),
    Case("a language model's head: cross_entropy, bfloat16", 2048, 32000, torch.bfloat16, _loss),
)


@undisturbed()
def run_demo(arguments: list[str]) -> int:
    """Prints the demonstration; 0 when every number in it was as it should be."""
    parser = argparse.ArgumentParser(prog="npu_ce_jit demo", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, choices=range(1, 100), metavar="N", help="rounds of each timing"
    )
    rounds = parser.parse_args(arguments).rounds
    session = bootstrap.load_all(may_build=True)
    cpu = session.cpu
    where = cpu.artifact.library if cpu.artifact else cpu.problem or "plain PyTorch"
    print(f"device: cpu, {torch.get_num_threads()} threads\nkernels: {session.backend} ({where})")
    fine = [*(_compare(case, rounds) for case in CASES), _trace(), _export()]
    return 0 if all(fine) else 1


def _compare(case: Case, rounds: int) -> bool:
    print(f"\n{case.title}, N={case.rows}, C={case.classes}")
    x = torch.randn(case.rows, case.classes).to(case.dtype)
    target = torch.arange(case.rows)  # as in the vendor's example
    truth = F.cross_entropy(x.double(), target).item()
    true_gradient = _gradient(F.cross_entropy, x[:64].double(), target[:64])
    implementations = {"npu_ce_jit": case.ours, "F.cross_entropy": F.cross_entropy}
    steps = {name: _training_step(loss, x, target) for name, loss in implementations.items()}
    seconds = interleaved(steps, rounds)
    print(f"  {'':16} {'loss':>10} {'loss error':>11} {'grad error':>11} {'fwd + bwd':>11} {'peak memory':>12}")
    errors = {}
    for name, loss in implementations.items():
        value = loss(x, target).item()
        gradient = _gradient(loss, x[:64], target[:64])
        worst = ((gradient.double() - true_gradient) / true_gradient).abs().max().item()
        errors[name] = abs(value - truth)
        peak = peak_memory(steps[name])
        memory = "not known" if peak is None else f"{peak / 2**20:.0f} MiB"
        milliseconds = statistics.median(seconds[name]) * 1e3
        print(f"  {name:16} {value:10.5f} {errors[name]:11.1e} {worst:11.1e} {milliseconds:8.1f} ms {memory:>12}")
    ratio = median_ratio(seconds, of="F.cross_entropy", to="npu_ce_jit")
    print(f"  {ratio:.1f} times as fast; errors are against float64, the gradient's is its worst element's, relative")
    return errors["npu_ce_jit"] <= max(2 * errors["F.cross_entropy"], 1e-6 * truth)


def _gradient(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf, target), leaf)[0]


def _training_step(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    return lambda: _gradient(loss, x, target)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 1000)

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        return _loss(self.head(hidden), target)


def _trace() -> bool:
    with FakeTensorMode():
        model = _Model()
        loss = model(torch.empty(4096, 64), torch.empty(4096, dtype=torch.int64))
        loss.backward()
    weight_gradient = model.head.weight.grad
    assert weight_gradient is not None
    print(
        f"\nFakeTensor: loss {tuple(loss.shape)}, gradient of the head {tuple(weight_gradient.shape)}; nothing computed"
    )
    return weight_gradient.shape == (1000, 64)


def _export() -> bool:
    model, rows = _Model(), torch.export.Dim("rows", min=2)
    inputs = (torch.randn(8, 64), torch.randint(1000, (8,)))
    program = torch.export.export(model, inputs, dynamic_shapes=({0: rows}, {0: rows}))
    ours = [str(node.target) for node in program.graph.nodes if "npu_ce_jit" in str(node.target)]
    other = (torch.randn(21, 64), torch.randint(1000, (21,)))
    agrees = torch.allclose(program.module()(*other), model(*other))
    verdict = "agrees" if agrees else "WRONG"
    print(f"torch.export: {', '.join(ours)}; any number of rows; run with 21 instead of 8: {verdict}")
    return agrees
