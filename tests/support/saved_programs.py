# SPDX-License-Identifier: Apache-2.0
"""Runs exported programs in another process, which executes this file, and returns their results.

usage: saved_programs.py DIRECTORY DEVICE with|without        the package; without it no import finds it
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

Inputs = tuple[Tensor, ...]


def on(device: str | torch.device, inputs: Inputs) -> Inputs:
    """New leaves on the device, which require gradients as `inputs` do."""
    return tuple(tensor.detach().to(device).requires_grad_(tensor.requires_grad) for tensor in inputs)


def outputs_and_gradient(call: Callable[..., Inputs], inputs: Inputs) -> list[Tensor]:
    """All outputs, and the gradient of the first with respect to the first input; on the CPU."""
    outputs = call(*inputs)
    gradients = torch.autograd.grad(outputs[0].sum(), inputs[0])
    return [tensor.detach().cpu() for tensor in (*outputs, *gradients)]


def save(directory: Path, name: str, program: ExportedProgram, calls: Sequence[Inputs]) -> None:
    """Saves a program, and the inputs of its calls, for `run_all`."""
    torch.export.save(program, directory / f"{name}.pt2")
    torch.save([on("cpu", inputs) for inputs in calls], directory / f"{name}.calls")


def results(directory: Path, name: str) -> list[list[Tensor]]:
    """The program's results, call by call."""
    return torch.load(directory / f"{name}.results")


def run_all(
    directory: Path, device: str = "cpu", package: str = "with", python: Sequence[str | Path] = (sys.executable,)
) -> subprocess.CompletedProcess[str]:
    """Runs every program of `directory` in one process, started with `python`."""
    command = [*python, __file__, directory, device, package]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def main(directory: str, device: str, package: str) -> None:
    if package == "without":
        sys.modules["npu_ce_jit"] = None  # type: ignore[assignment]
    else:
        import npu_ce_jit  # noqa: F401
    for file in sorted(Path(directory).glob("*.pt2")):
        call = torch.export.load(file).module()
        calls = torch.load(file.with_suffix(".calls"))
        found = [outputs_and_gradient(call, on(device, inputs)) for inputs in calls]
        torch.save(found, file.with_suffix(".results"))


if __name__ == "__main__":
    main(*sys.argv[1:])
