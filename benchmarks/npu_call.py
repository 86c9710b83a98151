# SPDX-License-Identifier: Apache-2.0
"""One call of the NPU kernels on the virtual NPU, as the glue would make it, and what it cost."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from official_npu import Chip, Figures, Times, chips, official  # which puts tests/ on the path

import backward_npu  # isort: skip
import npu_kernels  # isort: skip
from npu_kernels import CeForwardOutputs, CeProblem  # isort: skip
from virtual_cann import kernels, observe  # isort: skip

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMS = ("forward", "forward+log_prob", "backward")
BY_ROW = ("rows", "entropy")  # options: reduction "none" and no lse, alone and with entropy
SOC = os.environ.get("VIRTUAL_CANN_SOC", "Ascend910B2")
CHIP = chips(SOC)["table"]
PROCESSES = 2


class Case(NamedTuple):
    form: str
    dtype: str
    rows: int
    classes: int
    option: str = ""
    every_nth_block: int = 1  # only these run; the others are taken to cost the same

    @property
    def elements_run(self) -> float:
        return self.rows * self.classes / self.every_nth_block


@dataclass(frozen=True)
class Measured:
    case: Case
    ours: Figures
    official: Figures
    keeps_row: bool  # in UB, for log_prob

    @property
    def elements(self) -> int:
        return self.case.rows * self.case.classes


class Libraries(NamedTuple):
    forward: ctypes.CDLL
    backward: ctypes.CDLL
    backward_planner: ctypes.CDLL


def measure(cases: list[Case]) -> list[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        compile_all(Path(folder))
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(PROCESSES, spawn, initializer=load_all, initargs=(Path(folder),)) as pool:
            # The largest first, so that no process is still busy with one after the other is done.
            order = sorted(
                range(len(cases)), key=lambda i: -cases[i].rows * cases[i].classes / cases[i].every_nth_block
            )
            pending = {i: pool.submit(run, cases[i]) for i in order}
            return [pending[i].result() for i in range(len(cases))]


def compile_all(folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        more = map(str, npu_kernels.SOURCES[1:])
        pending = [
            pool.submit(
                kernels.compile_kernels, npu_kernels.SOURCES[0], folder / "forward.so", *npu_kernels.FLAGS, *more
            ),
            pool.submit(backward_npu.compile_backward, folder / "backward.so"),
        ]
        backward_npu.compile_planner(folder / "planner.so")
        for task in pending:
            task.result()


def load_all(folder: Path) -> None:
    global _libraries
    kernels.acl()
    _libraries = Libraries(*(ctypes.CDLL(str(folder / f"{name}.so")) for name in ("forward", "backward", "planner")))


@contextmanager
def gm(size: int) -> Iterator[int]:
    pointer = ctypes.c_void_p()
    kernels.check(kernels.acl().aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)), 0))
    try:
        yield pointer.value or 0
    finally:
        kernels.check(kernels.acl().aclrtFree(pointer))


@contextmanager
def random_rows(rows: int, classes: int, dtype: torch.dtype) -> Iterator[int]:
    """Logits that repeat a few rows: the counters do not depend on their values."""
    block = torch.randn(min(rows, -(-(2**20) // classes)), classes).to(dtype)
    row_bytes = classes * dtype.itemsize
    with gm(rows * row_bytes) as pointer:
        for row in range(0, rows, len(block)):
            part = block[: rows - row]
            backward_npu.copy(pointer + row * row_bytes, part, kernels.HOST_TO_DEVICE)
        yield pointer


def reports_of(launch: Callable[..., int], *structs: ctypes.Structure) -> list[dict[str, Any]]:
    """The reports of one call's launches. Raises where a kernel breaks a rule of the virtual NPU."""
    stream = ctypes.c_void_p()
    kernels.check(kernels.acl().aclrtCreateStream(ctypes.byref(stream)))
    observe.clear_reports()
    try:
        launch(*map(ctypes.byref, structs), stream)
        kernels.check(kernels.acl().aclrtSynchronizeStream(stream))
        return observe.reports()
    finally:
        kernels.acl().aclrtDestroyStreamForce(stream)


def run(case: Case) -> Measured:
    form, dtype_name, rows, classes, option, every_nth_block = case
    observe.run_every_nth_block(every_nth_block)
    whole = every_nth_block == 1
    dtype = DTYPES[dtype_name]
    size = dtype.itemsize
    with ExitStack() as stack:

        def take(bytes_: int) -> int:
            return stack.enter_context(gm(bytes_))

        def device(tensor: torch.Tensor) -> int:
            return stack.enter_context(kernels.on_device(tensor)).value or 0

        def vector(length: int) -> backward_npu.CeRowVector:
            pointer = device(torch.ones(length)) if length else None
            return backward_npu.CeRowVector(pointer, npu_kernels.DTYPES[torch.float32], int(length > 1))

        problem = CeProblem(
            # Where only some blocks run, all rows are one in memory (row_stride 0), to save it.
            input=stack.enter_context(random_rows(rows if whole else 1, classes, dtype)),
            rows=rows,
            row_stride=classes if whole else 0,
            classes=classes,
            dtype=npu_kernels.DTYPES[dtype],
            target=device(torch.randint(classes, (rows,))),
            target_dtype=npu_kernels.DTYPES[torch.int64],
            reduction=npu_kernels.REDUCTIONS["none" if option in BY_ROW else "mean"],
            weight=device(torch.rand(classes)) if option == "weights" else None,
            ignore_index=-100,
            label_smoothing=0.1 if option == "smoothing" else 0,
            softcap=30 if option == "softcap" else 0,
            logit_scale=1,
        )
        if form == "backward":
            gradients = backward_npu.CeGradients(
                loss=vector(rows if option in BY_ROW else 1),
                entropy=vector(rows if option == "entropy" else 0),
                entropy_value=device(torch.ones(rows)) if option == "entropy" else None,
                row_stats=device(torch.ones(2, rows)),
                denominators=device(torch.full((2,), float(rows))),
                input_gradient=take(rows * classes * size),
            )
            plan = backward_npu.CeBackwardPlan()
            arguments = map(ctypes.byref, (problem, gradients))
            _libraries.backward_planner.ce_backward_plan(
                *arguments, CHIP.cores, npu_kernels.UB_BYTES, ctypes.byref(plan)
            )
            gradients.workspace = take(plan.workspace_bytes)
            reports = reports_of(_libraries.backward.npu_ce_backward, problem, gradients, plan)
            keeps_row, bypass_l2 = False, "backward" if plan.bypass_l2 else None
        else:
            outputs = CeForwardOutputs(
                loss=take(4 * rows if option in BY_ROW else 4),
                loss_dtype=npu_kernels.DTYPES[torch.float32],
                log_prob=take(rows * classes * size) if form == "forward+log_prob" else None,
                lse=None if option in BY_ROW else take(rows * 4),
                entropy=take(rows * 4) if option == "entropy" else None,
                row_stats=take(rows * 8),
                denominators=take(8),
            )
            plan = npu_kernels.plan_forward(problem, outputs, CHIP.cores)
            outputs.workspace = take(plan.workspace_bytes)
            reports = reports_of(_libraries.forward.npu_ce_forward, problem, outputs, plan)
            keeps_row = bool(plan.forward.kept_tiles * plan.forward.tile_columns >= classes or plan.forward.tile_rows)
            bypass_l2 = ("log_prob" if plan.log_prob_blocks else "forward_wide") if plan.bypass_l2 else None
    direction = "backward" if form == "backward" else "forward"
    return Measured(
        case,
        figures(reports, rows * classes, size, bypass_l2),
        official(direction, rows, classes, size, SOC),
        keeps_row,
    )


def core_bytes(report: dict[str, Any]) -> list[int]:
    return [core["gm_bytes_read"] + core["gm_bytes_written"] for core in report["cores"]]


def of_all_blocks(report: dict[str, Any]) -> dict[str, float]:
    times = report["blocks"] / report["blocks_run"]
    return {name: count * times for name, count in report["total"].items() if name != "dma_sizes"}


def figures(reports: list[dict[str, Any]], elements: int, size: int, bypass_l2: str | None) -> Figures:
    """`bypass_l2` is a part of the name of the kernel whose reads bypass the L2; None where none does."""
    totals = list(map(of_all_blocks, reports))
    total = {name: sum(each[name] for each in totals) for name in totals[0]}
    read, written = total["gm_bytes_read"], total["gm_bytes_written"]
    busiest, cores = max((core_bytes(report) for report in reports), key=sum), CHIP.cores
    return Figures(
        read=read / elements / size,
        written=written / elements / size,
        dma_bytes=(read + written) / (total["dma_reads"] + total["dma_writes"]),
        repeats=total["vector_repeats"] / elements,
        conflicts=total["bank_conflicts"] / elements,
        busiest=max(busiest) * cores / sum(busiest),
        blocks=[report["blocks"] for report in reports],
        times={name: times(name, reports, totals, bypass_l2) for name in chips(SOC)},
    )


def times(name: str, reports: list[dict[str, Any]], totals: list[dict[str, float]], bypass_l2: str | None) -> Times:
    on = chips(SOC)[name]
    estimates = [report["estimates"][name] for report in reports]
    memory = sum(
        memory_seconds(total, bypass_l2 is not None and bypass_l2 in report["kernel"], on)
        for report, total in zip(reports, totals, strict=True)
    )
    return Times(
        estimate=sum(estimate["microseconds"] for estimate in estimates),
        launches=sum(on.launch(report["blocks"]) for report in reports),
        traffic_bound=1e6 * max(memory, sum(map(moved, totals)) / on.rates["read_and_write"]),
        vector_bound=sum(estimate["V"] for estimate in estimates),
    )


def moved(total: dict[str, float]) -> float:
    return total["gm_bytes_read"] + total["gm_bytes_written"]


def memory_seconds(total: dict[str, float], bypass_l2: bool, on: Chip) -> float:
    """Seconds of a launch's traffic. Where reads bypass the L2, it takes up what is written, up to its size."""
    taken_up = min(total["gm_bytes_written"], on.l2_bytes) if bypass_l2 else 0
    return (moved(total) - taken_up) / on.memory(on.fits_l2(moved(total)))
