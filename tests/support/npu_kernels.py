# SPDX-License-Identifier: Apache-2.0
"""The forward kernels on the virtual CANN, called as the glue calls them: plan, workspace, launches, reports."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from abi_structs import ENUMERATORS, STRUCTS
from torch import Tensor
from virtual_cann import kernels, observe

from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS
from npu_ce_jit.jit.sources import Sources

HERE = Path(__file__).parent
ROOT = Sources.installed().root_dir
SOURCES = [ROOT / "ascendc" / "forward" / f"{name}.asc" for name in ("forward", "merge", "log_prob", "reduce")]
FLAGS = FLAG_SETS[0].flags  # a build's flags, so that builds and these tests share cached objects
DTYPES = {
    torch.float32: ENUMERATORS["kCeFloat32"],
    torch.float16: ENUMERATORS["kCeFloat16"],
    torch.bfloat16: ENUMERATORS["kCeBFloat16"],
    torch.int32: ENUMERATORS["kCeInt32"],
    torch.int64: ENUMERATORS["kCeInt64"],
}
REDUCTIONS = {name: ENUMERATORS[f"kCe{name.title()}"] for name in ("none", "mean", "sum")}
UB_BYTES = 196608 - 256 - 8192
CORES = 48

CeProblem, CeForwardOutputs = STRUCTS["CeProblem"], STRUCTS["CeForwardOutputs"]
CeForwardTiling, CeForwardPlan = STRUCTS["CeForwardTiling"], STRUCTS["CeForwardPlan"]


@cache
def planner() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "plan.so"
        sources = [HERE / "ce_plan_driver/driver.cpp", ROOT / "csrc/npu/forward_plan.cpp"]
        command = [
            "g++",
            "-std=c++17",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            f"-I{ROOT}/csrc",
            "-o",
            library,
        ]
        subprocess.run([*map(str, command), *map(str, sources)], check=True)
        return ctypes.CDLL(str(library))


def plan_forward(
    problem: CeProblem, outputs: CeForwardOutputs, cores: int = CORES, ub: int = UB_BYTES
) -> CeForwardPlan:
    plan = CeForwardPlan()
    planner().plan_forward(*map(ctypes.byref, (problem, outputs)), cores, ub, ctypes.byref(plan))
    return plan


@cache
def library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        more = [str(source) for source in SOURCES[1:]]
        return kernels.compile_kernels(SOURCES[0], Path(folder) / "kernels.so", *FLAGS, *more)


class Arguments(NamedTuple):
    """The arguments of the internal operator _forward."""

    weight: Tensor | None = None
    reduction: str = "mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0
    logit_scale: float = 1.0
    outputs: tuple[str, ...] = ("lse",)
    loss_dtype: torch.dtype = torch.float32


@dataclass
class Forward:
    loss: Tensor
    row_stats: Tensor
    denominators: Tensor
    optional: dict[str, Tensor]
    plan: CeForwardPlan
    reports: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"loss": self.loss, "row_stats": self.row_stats, "denominators": self.denominators, **self.optional}

    def total(self, counter: str) -> int:
        return sum(core[counter] for report in self.reports for core in report["cores"])


def forward(
    logits: Tensor,
    target: Tensor,
    arguments: Arguments | None = None,
    cores: int = CORES,
    row_stride: int | None = None,
    plan_rows: int | None = None,
    sums: tuple[int, int] | None = None,
) -> Forward:
    """Runs forward once, with every output initialised to NaN or -1.

    `row_stride` is the distance of rows in GM, with NaN between them. `plan_rows` makes tilings as for that many rows.
    `sums` replaces the plan's number of rows in a sum, and of sums in a block of the reduction.
    """
    a = arguments or Arguments()
    rows, classes = logits.shape
    stride = row_stride or classes
    reduced = (rows,) if a.reduction == "none" else (1,)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, -1 if dtype == torch.int64 else torch.nan, dtype=dtype)

    optional = {
        "z_loss": lambda: empty(*reduced, dtype=a.loss_dtype),
        "log_prob": lambda: empty(rows, classes, dtype=logits.dtype),
        "lse": lambda: empty(rows),
        "argmax": lambda: empty(rows, dtype=torch.int64),
        "entropy": lambda: empty(rows),
    }
    result = Forward(
        loss=empty(*reduced, dtype=a.loss_dtype),
        row_stats=empty(2, rows),
        denominators=empty(2),
        optional={name: optional[name]() for name in a.outputs},
        plan=CeForwardPlan(),
    )

    with ExitStack() as stack:

        def device(tensor: Tensor) -> ctypes.c_void_p:
            return stack.enter_context(kernels.on_device(tensor))

        problem = CeProblem(
            input=stack.enter_context(rows_on_device(logits, stride)),
            rows=rows,
            row_stride=stride,
            classes=classes,
            dtype=DTYPES[logits.dtype],
            target=device(target),
            target_dtype=DTYPES[target.dtype],
            reduction=REDUCTIONS[a.reduction],
            weight=None if a.weight is None else device(a.weight),
            ignore_index=a.ignore_index,
            label_smoothing=a.label_smoothing,
            z_loss=a.z_loss,
            softcap=a.softcap,
            logit_scale=a.logit_scale,
        )
        outputs = CeForwardOutputs(
            loss_dtype=DTYPES[a.loss_dtype], **{name: device(tensor) for name, tensor in result.tensors.items()}
        )
        result.plan = plan_forward(problem, outputs, cores)
        if plan_rows is not None:
            result.plan = tiled_as(plan_rows, problem, outputs, result.plan)
        if sums is not None:
            reduce_as(*sums, rows, result.plan)
        outputs.workspace = device(empty(result.plan.workspace_bytes // 4))
        launch(problem, outputs, result)
    return result


@contextmanager
def rows_on_device(logits: Tensor, stride: int) -> Iterator[ctypes.c_void_p]:
    """Rows `stride` elements apart. Gaps hold NaN; where they are too large for that, they are never touched."""
    rows, classes = logits.shape
    elements = max(0, (rows - 1) * stride + classes)
    if elements < 2**28:
        spread = torch.full((elements,), torch.nan, dtype=logits.dtype)
        if rows:
            spread.as_strided((rows, classes), (stride, 1)).copy_(logits)
        with kernels.on_device(spread) as pointer:
            yield pointer
        return
    acl, pointer, size = kernels.acl(), ctypes.c_void_p(), logits.element_size()
    kernels.check(acl.aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(elements * size), 0))
    try:
        row_bytes = ctypes.c_size_t(classes * size)
        for row, values in enumerate(logits):
            at = ctypes.c_void_p(pointer.value + row * stride * size)
            kernels.check(acl.aclrtMemcpy(at, row_bytes, ctypes.c_void_p(values.data_ptr()), row_bytes, 1))
        yield pointer
    finally:
        kernels.check(acl.aclrtFree(pointer))


def tiled_as(rows: int, problem: CeProblem, outputs: CeForwardOutputs, plan: CeForwardPlan) -> CeForwardPlan:
    """The tilings for `rows` rows of one span, with the numbers of blocks and the workspace for the actual rows."""
    few, problem.rows = problem.rows, rows
    many = plan_forward(problem, outputs)
    problem.rows = few
    assert many.forward.spans == 1
    plan.forward, plan.sum_rows = many.forward, many.sum_rows
    plan.forward_blocks = min(plan.forward_blocks, -(-few // plan.sum_rows))
    plan.merge_blocks = plan.log_prob_blocks = 0
    if plan.reduces:
        reduce_as(plan.sum_rows, plan.reduce_sums, few, plan)
    return plan


def reduce_as(sum_rows: int, reduce_sums: int, rows: int, plan: CeForwardPlan) -> None:
    terms, sums = 4, -(-rows // sum_rows)
    plan.sum_rows, plan.reduce_sums, plan.reduces = sum_rows, reduce_sums, 0
    plan.forward_blocks = min(plan.forward_blocks, sums)
    plan.reduce_blocks = -(-sums // reduce_sums)
    plan.partials_offset = plan.sums_offset + terms * sums
    plan.workspace_bytes = 4 * (plan.partials_offset + terms * plan.reduce_blocks)


def launch(problem: CeProblem, outputs: CeForwardOutputs, result: Forward) -> None:
    acl, stream = kernels.acl(), ctypes.c_void_p()
    kernels.check(acl.aclrtCreateStream(ctypes.byref(stream)))
    observe.clear_reports()
    references = map(ctypes.byref, (problem, outputs, result.plan))
    try:
        assert library().npu_ce_forward(*references, stream) == 0
        if acl.aclrtSynchronizeStream(stream):
            result.message = (acl.aclGetRecentErrMsg() or b"").decode()
        result.reports = observe.reports()
    finally:
        acl.aclrtDestroyStreamForce(stream)
