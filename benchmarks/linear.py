# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy, forward + backward, beside F.linear + F.cross_entropy and torch's own chunked one, on the CPU.

    python benchmarks/linear.py [--json] [--rounds N] [--quick]

Ratios are medians over interleaved rounds (npu_ce_jit/measure.py says how). Memory is what torch allocates over the
inputs at its peak, with the gradients that are returned: the resident set misses what the C library had kept. Torch's
has options: those that are best for its time (all rows at once), and those that are best for its memory (few rows a
chunk), where ours is given the same. --quick takes one small shape, which no bar is for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from cpu import DTYPES, Row, ratios, row, show, with_kernels
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions

from npu_ce_jit import linear_cross_entropy
from npu_ce_jit.measure import peak_allocated

# (rows, in_features, classes), and two that nothing was tuned for. Where features are as many as rows, linear_weight's
# gradient, which both return, leaves less to save than the bars ask.
SHAPES = [(2048, 1024, 32000), (1777, 769, 24007), (4099, 769, 16001)]
QUICK_SHAPES = [(1024, 256, 16000)]
# By dtype: how many times faster, and how many times less memory, than F.linear + F.cross_entropy.
BARS = {"fp32": (1.1, 3.5), "bf16": (1.0, 2.0)}
FOR_TIME = LinearCrossEntropyOptions(chunking_method=None)
FOR_MEMORY = LinearCrossEntropyOptions(batch_chunk_size=16, chunking_method=None, acc_policy="compact")

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "ours": linear_cross_entropy,
    "F.linear + F.cross_entropy": lambda x, w, target: F.cross_entropy(F.linear(x, w), target),
    "torch's for time": lambda x, w, target: F.linear_cross_entropy(x, w, target, options=FOR_TIME),
    "ours for memory": lambda x, w, target: linear_cross_entropy(x, w, target, options=FOR_MEMORY),
    "torch's for memory": lambda x, w, target: F.linear_cross_entropy(x, w, target, options=FOR_MEMORY),
}


def training_step(loss: Loss, x: Tensor, weight: Tensor, target: Tensor) -> Callable[[], object]:
    def step() -> object:
        leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
        loss(*leaves, target).backward()
        return [leaf.grad for leaf in leaves]

    return step


def measure(shape: tuple[int, int, int], dtype_name: str, rounds: int) -> list[Row]:
    rows, features, classes = shape
    dtype = DTYPES[dtype_name]
    x, weight = torch.randn(rows, features).to(dtype), (torch.randn(classes, features) * features**-0.5).to(dtype)
    target = torch.randint(classes, (rows,))
    steps = {name: training_step(loss, x, weight, target) for name, loss in LOSSES.items()}
    case = f"{dtype_name} {shape}"
    plain, for_time = "F.linear + F.cross_entropy", "torch's for time"
    times = ratios({name: steps[name] for name in ("ours", plain, for_time)}, rounds)
    time_bar, memory_bar = BARS[dtype_name]
    peaks = {name: peak_allocated(step) for name, step in steps.items()}
    megabytes = {name: peak / 2**20 for name, peak in peaks.items()}
    return [
        row(f"{case}, time x {plain}", times[plain], "x", time_bar, ms=times["milliseconds"]),
        row(f"{case}, time x {for_time}", times[for_time], "x", 1.0, ms=times["milliseconds"]),
        row(f"{case}, memory x {plain}", peaks[plain] / peaks["ours"], "x", memory_bar, MiB=megabytes["ours"]),
        row(
            f"{case}, for memory, memory / torch's",
            peaks["ours for memory"] / peaks["torch's for memory"],
            "x",
            1.0,
            most=True,
            MiB=megabytes["ours for memory"],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each comparison")
    parser.add_argument("--quick", action="store_true", help="a small shape, one round")
    arguments = parser.parse_args()
    session = with_kernels()
    shapes, rounds = (QUICK_SHAPES, 1) if arguments.quick else (SHAPES, arguments.rounds)
    rows = [entry for shape in shapes for dtype in DTYPES for entry in measure(shape, dtype, rounds)]
    show(rows, session, arguments.json)


if __name__ == "__main__":
    main()
