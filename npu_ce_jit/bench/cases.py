# SPDX-License-Identifier: Apache-2.0
"""One cell of a benchmark: a loss, a form, a dtype and a shape, computed by several implementations side by side.

Milliseconds are medians over interleaved rounds; ratios are medians of the rounds' ratios. The limit of a loss from
logits is torch's copy_ of the logits; that of a loss from hidden states is its matrix products alone, by torch.mm (on a
CPU in float32, since most CPUs have no matrix instructions for less). Both run in the same rounds. GB/s and the share
of the limit count the bytes that must be moved, whatever an implementation moves: the logits read and, for the drop-in,
log_prob written; for backward, the logits read again and the gradient written. Memory is the peak in addition to the
inputs, the returned gradients included, in units of the logits' bytes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.bench.implementations import Implementation, Loss
from npu_ce_jit.bench.timing import Call, interleaved, median_ratio, peak_allocated, peak_memory, undisturbed

FORWARD, STEP = "forward", "forward + backward"
FORMS = (FORWARD, STEP)
DTYPES = ("float32", "bfloat16", "float16")
LIMIT = "the limit"
# Logits that each turn takes, in several calls if need be: a clock is too coarse for one call of a few rows.
_TURN = 1 << 16
_MOST_CALLS = 100
# An implementation slower than this is timed once, in the call that measured its memory: a CPU without instructions for
# bfloat16 multiplies bfloat16 matrices thirty times as slowly as float32 ones.
_PATIENCE_SECONDS = 20.0

Row = dict[str, Any]


class Cell(NamedTuple):
    loss: str
    form: str
    dtype: str
    rows: int
    classes: int
    features: int = 0  # of the hidden states, for "linear"

    @property
    def shape(self) -> str:
        return " x ".join(str(size) for size in (self.rows, self.features, self.classes) if size)


class Effort(NamedTuple):
    rounds: int
    seconds: float  # of a cell, after which no round begins except the first three
    compile: bool
    calls: int = 1  # at least, each turn: many on an NPU, or the wait for the device would count


class BenchInputs(NamedTuple):
    """The inputs of all implementations of a cell, and the limit to compare them with."""

    leaves: tuple[Tensor, ...]
    target: Tensor
    prepare: Call
    limit: Call
    limits: float  # how many runs of `limit` make the work of the cell
    work: float  # bytes, or floating-point operations
    unit: str


class _Step:
    """Computes the loss, keeping its other outputs alive until after backward, as a caller who wants them does."""

    def __init__(self, loss: Loss, problem: BenchInputs, backward: bool) -> None:
        self.loss, self.problem, self.backward = loss, problem, backward
        self.seconds = 0.0  # of the last call
        self.value: Tensor | None = None  # of the first call: an in-place loss overwrites the logits by the gradient

    def __call__(self) -> object:
        start = time.perf_counter()
        leaves = [leaf.detach().requires_grad_(self.backward) for leaf in self.problem.leaves]
        outputs = self.loss(*leaves, self.problem.target)
        value, *kept = (outputs,) if isinstance(outputs, Tensor) else outputs
        gradients = torch.autograd.grad(value.sum(), leaves) if self.backward else ()
        if self.value is None:
            self.value = value.detach()
        self.seconds = time.perf_counter() - start
        return value, kept, gradients


@undisturbed()
def measure(cell: Cell, implementations: Iterable[Implementation], device: torch.device, effort: Effort) -> list[Row]:
    """A row for each implementation of this cell, and one for the limit."""
    problem = (_from_hidden if cell.features else _from_logits)(cell, device)
    logits_bytes = cell.rows * cell.classes * getattr(torch, cell.dtype).itemsize
    backward = cell.form == STEP
    implementations = [
        one for one in implementations if one.device in (None, device.type) and (backward or not one.trains_only)
    ]
    steps: dict[str, _Step] = {}
    rows: dict[str, Row] = {}
    for one in implementations:
        row = rows[one.name] = {**cell._asdict(), "implementation": one.name, "ours": one.ours}
        if one.compiles and not effort.compile:
            row["not run"] = "left out, since it compiles for minutes; bench --compile runs it"
            continue
        try:
            step = _Step(one.load(), problem, backward)
            problem.prepare()
            row["peak over logits"] = _peak(step, device, one.compiles) / logits_bytes
            assert step.value is not None  # the step was run
            row["value"] = step.value.sum().item()
        except Exception as error:  # noqa: BLE001  a peer that does not run here is reported, and the others go on
            row["not run"] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        else:
            steps[one.name] = step
    timed = {one.name: steps[one.name] for one in implementations if one.timed and one.name in steps}
    slow = {name: step.seconds for name, step in timed.items() if step.seconds > _PATIENCE_SECONDS}
    quick: dict[str, Call] = {name: step for name, step in timed.items() if name not in slow}
    calls = max(effort.calls, min(_MOST_CALLS, _TURN // (cell.rows * cell.classes)))
    wait = (lambda: None) if device.type == "cpu" else torch.get_device_module(device).synchronize
    problem.limit()
    seconds = interleaved(
        {LIMIT: problem.limit, **quick}, effort.rounds, calls, wait, problem.prepare, effort.seconds, warm_up=False
    )
    seconds |= {name: [of_one] * len(seconds[LIMIT]) for name, of_one in slow.items()}
    if any(one.compiles for one in implementations) and effort.compile:
        torch._dynamo.reset()  # or later shapes would exceed its limit of recompilations
    rows[LIMIT] = {**cell._asdict(), "implementation": LIMIT, "ours": False}
    seconds[LIMIT] = [of_one * problem.limits for of_one in seconds[LIMIT]]
    peers = [one.name for one in implementations if one.name in timed and not one.ours]
    for name in seconds:
        median = statistics.median(seconds[name])
        rows[name] |= {
            "milliseconds": median * 1e3,
            problem.unit: problem.work / median / 1e9,
            "share of the limit": median_ratio(seconds, of=LIMIT, to=name),
        }
        if rows[name]["ours"]:
            rows[name]["times as fast as"] = {peer: median_ratio(seconds, of=peer, to=name) for peer in peers}
    return list(rows.values())


def _peak(step: _Step, device: torch.device, warm_up: bool) -> int:
    """The peak memory of a step, in bytes. It is also the first call, which warms up for the timing."""
    if device.type == "cpu":
        return peak_allocated(step, warm_up)
    step()
    peak = peak_memory(step, device)
    assert peak is not None  # a device's allocator always reports it
    return peak


def _from_logits(cell: Cell, device: torch.device) -> BenchInputs:
    logits = torch.randn(cell.rows, cell.classes).to(getattr(torch, cell.dtype)).to(device)
    # An in-place loss overwrites the logits, so each turn starts with logits just written, as a model's are.
    x, copy = logits.clone(), torch.empty_like(logits)
    target = torch.randint(cell.classes, (cell.rows,)).to(device)
    passes = 1 + (cell.loss == "drop-in") + (2 if cell.form == STEP else 0)
    return BenchInputs(
        leaves=(x,),
        target=target,
        prepare=lambda: x.copy_(logits),
        limit=lambda: copy.copy_(logits),
        limits=passes / 2,  # a copy reads and writes
        work=passes * logits.nbytes,
        unit="GB/s",
    )


def _from_hidden(cell: Cell, device: torch.device) -> BenchInputs:
    dtype = getattr(torch, cell.dtype)
    x = torch.randn(cell.rows, cell.features).to(dtype).to(device)
    weight = (torch.randn(cell.classes, cell.features) * cell.features**-0.5).to(dtype).to(device)
    products = 3 if cell.form == STEP else 1
    return BenchInputs(
        leaves=(x, weight),
        target=torch.randint(cell.classes, (cell.rows,)).to(device),
        prepare=lambda: None,
        limit=_products(*((x.float(), weight.float()) if device.type == "cpu" else (x, weight)), products == 3),
        limits=1,
        work=products * 2.0 * cell.rows * cell.features * cell.classes,
        unit="GFLOP/s",
    )


def _products(x: Tensor, weight: Tensor, backward: bool) -> Callable[[], object]:
    logits, grad_x, grad_weight = x.new_empty(len(x), len(weight)), torch.empty_like(x), torch.empty_like(weight)

    def products() -> None:
        torch.mm(x, weight.T, out=logits)
        if backward:
            torch.mm(logits, weight, out=grad_x)
            torch.mm(logits.T, x, out=grad_weight)

    return products
