# SPDX-License-Identifier: Apache-2.0
"""Speed, memory and accuracy of the CPU kernels beside PyTorch's own, and the bars they must clear.

    python benchmarks/cpu.py [--json] [--rounds N] [--no-compile]

Ratios are medians over interleaved rounds (npu_ce_jit/measure.py says how). Peers are imported from torch, never
retyped. Memory is the peak of the process's resident set over the inputs, in units of the logits. The drop-in's
log_prob is kept until after the backward, as a caller who wanted it would.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import npu_ce_jit
from npu_ce_jit import bootstrap
from npu_ce_jit.measure import interleaved, median_ratio, peak_memory

SHAPES = [(4096, 8080), (2048, 32000)]
# As large, and never tuned for: a kernel that is fast only where it was measured is not fast.
UNLISTED_SHAPES = [(3313, 9991), (977, 67001)]
SMALL_OR_FLAT_SHAPES = [(65536, 10), (8, 152064)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Row = dict[str, Any]
Loss = Callable[[Tensor, Tensor], Any]
Contestants = dict[str, Callable[[], object]]


def ratios(contestants: Contestants, rounds: int, calls: int = 1) -> dict[str, float]:
    """Time of each contestant over that of "ours", and ours in milliseconds."""
    seconds = interleaved(contestants, rounds, calls)
    times = {name: median_ratio(seconds, of=name, to="ours") for name in contestants}
    return times | {"milliseconds": statistics.median(seconds["ours"]) * 1e3}


def training_step(loss: Loss, x: Tensor, target: Tensor) -> Callable[[], object]:
    leaf = x.detach().requires_grad_()

    def step() -> object:
        leaf.grad = None
        value, *kept = outputs if isinstance(outputs := loss(leaf, target), tuple) else (outputs,)
        value.sum().backward()
        return leaf.grad, kept

    return step


def without_gradients(loss: Loss, x: Tensor, target: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: loss(x, target))


def log_softmax_and_nll(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    log_prob = F.log_softmax(x, 1)
    return F.nll_loss(log_prob, target), log_prob


def inputs(shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(shape).to(dtype), torch.randint(shape[1], (shape[0],))


def row(what: str, value: float, unit: str, bar: float | None = None, most: bool = False, **more: float) -> Row:
    entry: Row = {"what": what, "value": value, "unit": unit, **more}
    if bar is not None:
        entry |= {"bar": f"{'<=' if most else '>='} {bar}", "met": value <= bar if most else value >= bar}
    return entry


def speed(
    shape: tuple[int, int], dtype_name: str, rounds: int, compiled: Callable[..., Any] | None, bars: bool
) -> list[Row]:
    x, target = inputs(shape, DTYPES[dtype_name])
    case = f"{dtype_name} {shape}"
    peers = {"F.cross_entropy": F.cross_entropy} | ({"torch.compile": compiled} if compiled else {})
    step = ratios(
        {"ours": training_step(npu_ce_jit.cross_entropy, x, target)}
        | {name: training_step(peer, x, target) for name, peer in peers.items()},
        rounds,
    )
    forward = ratios(
        {"ours": without_gradients(npu_ce_jit.cross_entropy, x, target)}
        | {name: without_gradients(peer, x, target) for name, peer in peers.items()},
        rounds,
    )
    with_log_prob = ratios(
        {
            "ours": training_step(npu_ce_jit.npu_cross_entropy_loss, x, target),
            "log_softmax + nll_loss": training_step(log_softmax_and_nll, x, target),
        },
        rounds,
    )
    cases = [
        ("lean fwd+bwd", "F.cross_entropy", step, 2.0),
        ("lean fwd", "F.cross_entropy", forward, 3.0 if dtype_name == "fp32" else 2.0),
        ("drop-in fwd+bwd", "log_softmax + nll_loss", with_log_prob, 1.4),
    ]
    if compiled:
        cases += [("lean fwd+bwd", "torch.compile", step, 1.1), ("lean fwd", "torch.compile", forward, None)]
    return [
        row(f"{form}, {case}, x {peer}", times[peer], "x", bar if bars else None, ms=times["milliseconds"])
        for form, peer, times, bar in cases
    ]


def memory(shape: tuple[int, int], dtype_name: str) -> list[Row]:
    x, target = inputs(shape, DTYPES[dtype_name])
    size = x.numel() * x.element_size()

    def in_place(x: Tensor, target: Tensor) -> Tensor:
        return npu_ce_jit.cross_entropy(x, target, inplace_backward=True)

    cases = [
        ("lean", npu_ce_jit.cross_entropy, 1.05),
        ("lean in place", in_place, 0.1),
        ("drop-in", npu_ce_jit.npu_cross_entropy_loss, 2.05),
        ("F.cross_entropy", F.cross_entropy, None),
    ]
    rows = []
    for name, loss, bar in cases:
        # A new leaf each time: a gradient left from the last step would count as the inputs' memory.
        peak = peak_memory(lambda loss=loss: training_step(loss, x, target)())  # type: ignore[misc]
        assert peak is not None, "memory is measured on Linux"
        rows.append(row(f"{name} fwd+bwd, {dtype_name} {shape}, peak / logits", peak / size, "x", bar, most=True))
    return rows


def accuracy() -> list[Row]:
    """bf16 gradients: the worst element against float64, over ordinary rows and confident ones."""
    ordinary = torch.randn(64, 32000).mul(3).bfloat16()
    confident = torch.zeros(256, 2, dtype=torch.bfloat16)
    confident[:, 1] = -torch.linspace(0, 9.2, 256)
    rows = []
    for name, x in (("ordinary", ordinary), ("confident", confident)):
        target = torch.randint(x.shape[1], (x.shape[0],))
        target[: len(target) // 2] = 0
        leaf, true = x.clone().requires_grad_(), x.double().requires_grad_()
        npu_ce_jit.cross_entropy(leaf, target, reduction="sum").backward()
        F.cross_entropy(true, target, reduction="sum").backward()
        normal = true.grad.abs() >= torch.finfo(torch.bfloat16).smallest_normal
        worst = ((leaf.grad.double() - true.grad) / true.grad)[normal].abs().max().item()
        rows.append(row(f"bf16 gradient, {name} rows, worst element", worst * 100, "%", 0.5, most=True))
    return rows


def overhead(rounds: int) -> Row:
    x, target = inputs((4, 8), torch.float32)
    result = ratios(
        {"ours": training_step(npu_ce_jit.cross_entropy, x, target), "peer": training_step(F.cross_entropy, x, target)},
        rounds,
        calls=500,
    )
    times = 1 / result["peer"]
    return row(
        "N=4, C=8 fp32 fwd+bwd, time / F.cross_entropy", times, "x", 4.0, most=True, us=result["milliseconds"] * 1e3
    )


def measure(rounds: int, with_compile: bool) -> list[Row]:
    rows: list[Row] = []
    for shape in SHAPES + UNLISTED_SHAPES:
        for dtype_name in DTYPES:
            compiled = torch.compile(F.cross_entropy, dynamic=False) if with_compile else None
            rows += speed(shape, dtype_name, rounds, compiled, bars=True)
            torch._dynamo.reset()
    for shape in SMALL_OR_FLAT_SHAPES:
        for dtype_name in DTYPES:
            rows += speed(shape, dtype_name, rounds, None, bars=False)
    for dtype_name in DTYPES:
        rows += memory(SHAPES[0], dtype_name)
    return [*rows, *accuracy(), overhead(rounds)]


def with_kernels() -> bootstrap.Session:
    session = bootstrap.current()
    assert session is not None
    if session.backend != "cpp":
        raise SystemExit(f"there are no compiled kernels to measure: {session.cpu.problem}")
    return session


def show(rows: list[Row], session: bootstrap.Session, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"threads": torch.get_num_threads(), "isa": session.cpu.key_name, "rows": rows}, indent=2))
        return
    for entry in rows:
        bar = f"bar {entry['bar']:>7}  {'met' if entry['met'] else 'MISSED'}" if "bar" in entry else ""
        note = next((f"({entry[unit]:.1f} {unit})" for unit in ("ms", "us", "MiB") if unit in entry), "")
        print(f"{entry['what']:68} {entry['value']:>8.3f} {entry['unit']:2} {bar:22} {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds of each comparison")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it compiles for minutes")
    arguments = parser.parse_args()
    session = with_kernels()
    show(measure(arguments.rounds, not arguments.no_compile), session, arguments.json)


if __name__ == "__main__":
    main()
