# SPDX-License-Identifier: Apache-2.0
"""The backward kernels on the virtual NPU: one call from tensors, and the float64 gradient to compare with."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from abi_structs import STRUCTS
from npu_kernels import CORES, DTYPES, FLAGS, HERE, REDUCTIONS, ROOT, UB_BYTES, CeProblem
from oracle import Options, truth
from torch import Tensor
from virtual_cann import kernels, observe

CeRowVector, CeGradients, CeBackwardPlan = (STRUCTS[f"Ce{name}"] for name in ("RowVector", "Gradients", "BackwardPlan"))


def compile_planner(library: Path) -> ctypes.CDLL:
    command = ["c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{ROOT}/csrc"]
    subprocess.run([*command, str(HERE / "backward_driver.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def compile_backward(library: Path) -> ctypes.CDLL:
    return kernels.compile_kernels(ROOT / "ascendc/backward/backward.asc", library, *FLAGS)


@dataclass
class Inputs:
    """The inputs of backward. An absent gradient is None; a gradient of one element is expanded to all rows."""

    logits: Tensor
    target: Tensor
    weight: Tensor | None = None
    options: Options = field(default_factory=Options)
    loss: Tensor | None = None
    z_loss: Tensor | None = None
    lse: Tensor | None = None
    entropy: Tensor | None = None
    log_prob: Tensor | None = None


@dataclass(frozen=True)
class Result:
    gradient: Tensor
    reports: list[dict[str, Any]]
    plan: CeBackwardPlan

    @property
    def counters(self) -> dict[str, float]:
        """The counters, summed over cores and launches."""
        cores = [core for report in self.reports for core in report["cores"]]
        return {name: sum(core[name] for core in cores) for name in cores[0] if name != "dma_sizes"}


def capped(x: Tensor, options: Options) -> Tensor:
    x = options.logit_scale * x
    return x if options.softcap is None else options.softcap * torch.tanh(x / options.softcap)


def expected(inputs: Inputs) -> Tensor:
    """The gradient in float64, by autograd. Not for targets that are no class, unless they are ignored."""
    leaf = inputs.logits.detach().double().requires_grad_()
    outputs = truth(leaf, inputs.target, inputs.weight, inputs.options)
    total = leaf.sum() * 0
    for name in ("loss", "z_loss", "lse", "entropy", "log_prob"):
        gradient = getattr(inputs, name)
        if gradient is not None:
            output = getattr(outputs, name)
            total = (
                total
                + (
                    output * gradient.double().reshape(-1)[:1] if gradient.numel() == 1 else output * gradient.double()
                ).sum()
            )
    return torch.autograd.grad(total, leaf)[0]


def run(
    library: ctypes.CDLL,
    planner: ctypes.CDLL,
    inputs: Inputs,
    *,
    cores: int = CORES,
    in_place: bool = False,
    offset: int = 0,
    gap: int = 0,
    stats: tuple[Tensor, Tensor] | None = None,
) -> Result:
    """One backward. The rows begin `offset` elements into their allocation, and have `gap` elements between them."""
    logits, options = inputs.logits, inputs.options
    rows, classes = logits.shape
    row_stats, entropy, denominators = saved_by_forward(inputs, stats)
    bytes_before = offset * logits.element_size()
    with ExitStack() as stack:

        def device(tensor: Tensor) -> int:
            return stack.enter_context(kernels.on_device(tensor)).value or 0

        def row_vector(tensor: Tensor | None) -> CeRowVector:
            if tensor is None:
                return CeRowVector(None, 0, 0)
            return CeRowVector(device(tensor), DTYPES[tensor.dtype], int(tensor.dim() > 0))

        def matrix(tensor: Tensor) -> int:
            return stack.enter_context(rows_on_device(tensor, offset, gap))

        problem = CeProblem(
            input=matrix(logits),
            rows=rows,
            row_stride=classes + gap,
            classes=classes,
            dtype=DTYPES[logits.dtype],
            target=device(inputs.target),
            target_dtype=DTYPES[inputs.target.dtype],
            reduction=REDUCTIONS[options.reduction],
            weight=None if inputs.weight is None else device(inputs.weight),
            ignore_index=options.ignore_index,
            label_smoothing=options.label_smoothing,
            z_loss=options.z_loss,
            softcap=options.softcap or 0.0,
            logit_scale=options.logit_scale,
        )
        pointers = CeGradients(
            loss=row_vector(inputs.loss),
            z_loss=row_vector(inputs.z_loss),
            lse=row_vector(inputs.lse),
            entropy=row_vector(inputs.entropy),
            log_prob=None if inputs.log_prob is None else matrix(inputs.log_prob),
            log_prob_row_stride=classes + gap,
            entropy_value=device(entropy),
            row_stats=device(row_stats),
            denominators=device(denominators),
        )
        plan = CeBackwardPlan()
        planner.ce_backward_plan(ctypes.byref(problem), ctypes.byref(pointers), cores, UB_BYTES, ctypes.byref(plan))
        pointers.workspace = device(torch.full((plan.workspace_bytes // 4,), float("nan")))
        gradient = torch.full((offset + rows * classes,), float("nan"), dtype=logits.dtype)
        pointers.input_gradient = device(gradient) + bytes_before
        if in_place:
            assert gap == 0
            gradient[offset:] = logits.flatten()
            copy(pointers.input_gradient, gradient[offset:], kernels.HOST_TO_DEVICE)
            problem.input = pointers.input_gradient
        reports = launch(library, problem, pointers, plan)
    return Result(gradient[offset:].view(rows, classes), reports, plan)


def saved_by_forward(inputs: Inputs, stats: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    """row_stats, entropy and denominators, as forward saves them, exact to float32."""
    x = capped(inputs.logits.double(), inputs.options)
    if stats is None:
        top = x.amax(1) if len(x) else x.new_zeros(0)
        stats = top, (x - top[:, None]).exp().sum(1).log()
    log_prob = x - (stats[0] + stats[1])[:, None]
    p = log_prob.exp()
    entropy = -torch.where(p == 0, 0, p * log_prob).sum(1)
    counted = inputs.target != inputs.options.ignore_index
    known = counted & (inputs.target >= 0) & (inputs.target < x.shape[1])
    weight = torch.ones(x.shape[1]) if inputs.weight is None else inputs.weight
    denominators = torch.stack([weight[inputs.target[known]].double().sum(), counted.sum().double()])
    return torch.stack(stats).float(), entropy.float(), denominators.float()


@contextmanager
def rows_on_device(matrix: Tensor, offset: int, gap: int) -> Iterator[int]:
    """The address of the first row. Gaps are not initialised, so that they may be of any size."""
    (rows, columns), size = matrix.shape, matrix.element_size()
    elements = offset + max(rows * (columns + gap) - gap, 0)
    pointer = ctypes.c_void_p()
    kernels.check(kernels.acl().aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(max(elements * size, 1)), 0))
    first = (pointer.value or 0) + offset * size
    try:
        if gap:
            for i, row in enumerate(matrix):
                copy(first + i * (columns + gap) * size, row, kernels.HOST_TO_DEVICE)
        else:
            copy(first, matrix, kernels.HOST_TO_DEVICE)
        yield first
    finally:
        kernels.check(kernels.acl().aclrtFree(pointer))


def copy(device: int, tensor: Tensor, kind: int) -> None:
    tensor = tensor.contiguous()
    size = ctypes.c_size_t(tensor.numel() * tensor.element_size())
    if size.value:
        kernels.check(
            kernels.acl().aclrtMemcpy(ctypes.c_void_p(device), size, ctypes.c_void_p(tensor.data_ptr()), size, kind)
        )


def launch(
    library: ctypes.CDLL, problem: CeProblem, pointers: CeGradients, plan: CeBackwardPlan
) -> list[dict[str, Any]]:
    stream = ctypes.c_void_p()
    kernels.check(kernels.acl().aclrtCreateStream(ctypes.byref(stream)))
    observe.clear_reports()
    try:
        assert library.npu_ce_backward(ctypes.byref(problem), ctypes.byref(pointers), ctypes.byref(plan), stream) == 0
        code = kernels.acl().aclrtSynchronizeStream(stream)
        message = (kernels.acl().aclGetRecentErrMsg() or b"").decode() if code else ""
        assert not code, message
        reports = observe.reports()
        assert all(report["violations"] == [] for report in reports)
        return reports
    finally:
        kernels.acl().aclrtDestroyStreamForce(stream)
