# SPDX-License-Identifier: Apache-2.0
"""The backward kernels on the virtual NPU: their structs, one call from tensors, and the float64 truth beside it."""

from __future__ import annotations

import ctypes
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from oracle import Options, truth
from torch import Tensor
from virtual_cann import kernels, observe

ROOT = Path(__file__).parent.parent
UB_BYTES = 188_160
CORES = 48
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int32: 3, torch.int64: 4}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


class RowVector(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("stride", ctypes.c_int32)]


class Problem(ctypes.Structure):
    _fields_ = [
        ("input", ctypes.c_void_p),
        ("rows", ctypes.c_uint64),
        ("row_stride", ctypes.c_uint64),
        ("classes", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        ("target", ctypes.c_void_p),
        ("target_dtype", ctypes.c_int32),
        ("reduction", ctypes.c_int32),
        ("weight", ctypes.c_void_p),
        ("ignore_index", ctypes.c_int64),
        ("label_smoothing", ctypes.c_float),
        ("z_loss", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("logit_scale", ctypes.c_float),
    ]


class GradientPointers(ctypes.Structure):
    _fields_ = [
        ("loss", RowVector),
        ("z_loss", RowVector),
        ("lse", RowVector),
        ("entropy", RowVector),
        ("log_prob", ctypes.c_void_p),
        ("log_prob_row_stride", ctypes.c_uint64),
        ("entropy_value", ctypes.c_void_p),
        ("row_stats", ctypes.c_void_p),
        ("denominators", ctypes.c_void_p),
        ("input_gradient", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    ]


BUFFERS = "tile log_prob weights work result term row_inputs row_vectors row_elements row_blocks column_index bits"


class Buffers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in BUFFERS.split()]


class SumPlan(ctypes.Structure):
    _fields_ = [
        ("spans", ctypes.c_uint32),
        ("span_columns", ctypes.c_uint32),
        ("partials", ctypes.c_uint64),
        ("sums", ctypes.c_uint64),
    ]


class Plan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ["narrow", "blocks", "tile_columns", "group_rows", "row_vector"]),
        *((name, ctypes.c_uint32) for name in ["pieces", "piece_columns", "input_tiles", "row_buffers", "round_l2"]),
        ("log_prob_sums", SumPlan),
        ("weight_total", SumPlan),
        ("workspace_bytes", ctypes.c_uint64),
        ("buffers", Buffers),
    ]


def compile_planner(library: Path) -> ctypes.CDLL:
    command = ["c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(ROOT / "tests/backward_driver.cpp"), "-o", str(library)], check=True)
    planner = ctypes.CDLL(str(library))
    assert planner.ce_backward_plan_bytes() == ctypes.sizeof(Plan)
    return planner


def compile_backward(library: Path) -> ctypes.CDLL:
    return kernels.compile_kernels(ROOT / "ascendc/ce_backward.asc", library)


@dataclass
class Inputs:
    """What flows back, and into what. Gradients of none are absent; those of one element are for all rows."""

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
    plan: Plan

    @property
    def counters(self) -> dict[str, float]:
        """Summed over cores and launches."""
        cores = [core for report in self.reports for core in report["cores"]]
        return {name: sum(core[name] for core in cores) for name in cores[0] if name != "dma_sizes"}


def capped(x: Tensor, options: Options) -> Tensor:
    x = options.logit_scale * x
    return x if options.softcap is None else options.softcap * torch.tanh(x / options.softcap)


def expected(inputs: Inputs) -> Tensor:
    """The gradient in float64, by autograd. Rows whose target is none, and not ignored, are not for it."""
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
    ub_bytes: int = UB_BYTES,
) -> Result:
    """One backward. Rows begin `offset` elements into their allocation, and lie `gap` elements apart."""
    logits, options = inputs.logits, inputs.options
    rows, classes = logits.shape
    x = capped(logits.double(), options)
    if stats is None:
        top = x.amax(1) if rows else x.new_zeros(0)
        stats = top, (x - top[:, None]).exp().sum(1).log()
    lse = stats[0] + stats[1]
    p = (x - lse[:, None]).exp()
    entropy_value = -torch.where(p == 0, 0, p * (x - lse[:, None])).sum(1)
    counted = inputs.target != options.ignore_index
    w = torch.ones(classes) if inputs.weight is None else inputs.weight
    known = counted & (inputs.target >= 0) & (inputs.target < classes)
    denominators = torch.tensor([w[inputs.target[known]].double().sum(), counted.sum()]).float()

    def strided(matrix: Tensor) -> Tensor:
        wide = torch.full((rows, classes + gap), 7.0, dtype=matrix.dtype)
        wide[:, :classes] = matrix
        return torch.cat(
            [torch.zeros(offset, dtype=matrix.dtype), wide.flatten()[: max(rows * (classes + gap) - gap, 0)]]
        )

    with ExitStack() as stack:
        keep: list[Tensor] = []

        def device(tensor: Tensor) -> int:
            keep.append(tensor.contiguous())
            return stack.enter_context(kernels.on_device(keep[-1])).value

        def row_vector(tensor: Tensor | None) -> RowVector:
            if tensor is None:
                return RowVector(None, 0, 0)
            return RowVector(device(tensor), DTYPES[tensor.dtype], int(tensor.dim() > 0))

        size = logits.element_size()
        x_gm = strided(logits)
        problem = Problem(
            device(x_gm) + offset * size,
            rows,
            classes + gap,
            classes,
            DTYPES[logits.dtype],
            device(inputs.target),
            DTYPES[inputs.target.dtype],
            REDUCTIONS[options.reduction],
            None if inputs.weight is None else device(inputs.weight),
            options.ignore_index,
            options.label_smoothing,
            options.z_loss,
            options.softcap or 0.0,
            options.logit_scale,
        )
        out = torch.full((offset + rows * classes,), float("nan"), dtype=logits.dtype)
        pointers = GradientPointers(
            row_vector(inputs.loss),
            row_vector(inputs.z_loss),
            row_vector(inputs.lse),
            row_vector(inputs.entropy),
            None if inputs.log_prob is None else device(strided(inputs.log_prob)) + offset * size,
            classes + gap,
            device(entropy_value.float()),
            device(torch.stack(stats).float()),
            device(denominators),
            None,
            None,
        )
        plan = Plan()
        planner.ce_backward_plan(ctypes.byref(problem), ctypes.byref(pointers), cores, ub_bytes, ctypes.byref(plan))
        pointers.workspace = device(torch.full((plan.workspace_bytes // 4,), float("nan")))
        if in_place:
            assert gap == 0
            pointers.input_gradient = problem.input
        else:
            pointers.input_gradient = device(out) + offset * size
        reports = launch(library, problem, pointers, plan)
        result = None
    result = keep[0] if in_place else keep[[t is out for t in keep].index(True)]
    return Result(result[offset:].view(rows, classes), reports, plan)


def launch(library: ctypes.CDLL, problem: Problem, pointers: GradientPointers, plan: Plan) -> list[dict[str, Any]]:
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
