# SPDX-License-Identifier: Apache-2.0
"""How fast the virtual NPU runs the sample kernels, and what it counts and estimates for them.

    python benchmarks/virtual_npu.py [--json] [--rounds N]

Speed is in elements per second of CPU time of all threads together, which a busy machine does not change; it is the
median over the rounds. Bytes and repeats are the counters' totals over the elements. Estimates are microseconds on the
chip of VIRTUAL_CANN_SOC, followed by those with all rates at their fast and at their slow ends.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "support")]

from virtual_cann import kernels  # noqa: E402

SHAPE = (4096, 8192)
CORES = 48
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TENSORS = {"add": 3, "log_softmax": 2}  # each is read from GM or written to it once at least
BARS = {("log_softmax", "fp32"): 20.0}  # M elements/s

Row = dict[str, Any]


def row(what: str, value: float, unit: str, bar: float | None = None, **more: float) -> Row:
    checked = {} if bar is None else {"bar": f">= {bar}", "met": value >= bar}
    return {"what": what, "value": value, "unit": unit, **more, **checked}


def measure(kernel: str, dtype_name: str, library: ctypes.CDLL, rounds: int) -> list[Row]:
    dtype = DTYPES[dtype_name]
    elements = SHAPE[0] * SHAPE[1]
    sizes = (ctypes.c_uint64(elements),) if kernel == "add" else SHAPE
    inputs = [torch.randn(SHAPE).to(dtype) for _ in range(TENSORS[kernel] - 1)]
    launcher = library[f"launch_{kernel}_{str(dtype).removeprefix('torch.')}"]
    seconds = []
    with ExitStack() as stack:
        pointers = [stack.enter_context(kernels.on_device(tensor)) for tensor in (*inputs, torch.empty_like(inputs[0]))]
        for _ in range(rounds):
            start = time.process_time()
            outcome = kernels.launch(launcher, CORES, *pointers, *sizes)
            seconds.append(time.process_time() - start)
    assert outcome.message == ""
    total, estimates = outcome.report["total"], outcome.report["estimates"]
    case = f"{kernel}, {dtype_name} {SHAPE}"
    speed = elements / statistics.median(seconds) / 1e6
    moved = (total["gm_bytes_read"] + total["gm_bytes_written"]) / elements
    return [
        row(f"{case}: speed", speed, "M elements/s", BARS.get((kernel, dtype_name))),
        row(f"{case}: bytes / element, over the least", moved / (TENSORS[kernel] * dtype.itemsize), "x", bytes=moved),
        row(f"{case}: vector repeats / element", total["vector_repeats"] / elements, ""),
        row(
            f"{case}: estimate",
            estimates["table"]["microseconds"],
            "us",
            fast=estimates["fast"]["microseconds"],
            slow=estimates["slow"]["microseconds"],
            **{f"{pipe}_busy": busy for pipe, busy in estimates["table"].items() if pipe != "microseconds"},
        ),
    ]


def rows_of(rounds: int) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for kernel in TENSORS:
            library = kernels.compile_kernels(
                TESTS / "virtual_cann" / "tests" / "kernels" / f"{kernel}.asc", Path(folder, f"{kernel}.so")
            )
            for dtype_name in DTYPES:
                rows += measure(kernel, dtype_name, library, rounds)
    return rows


def note(entry: dict[str, Any]) -> str:
    if "slow" not in entry:
        return ""
    busy = ", ".join(f"{key.removesuffix('_busy')} {entry[key]:.0f}" for key in entry if key.endswith("_busy"))
    return f"({entry['fast']:.0f} to {entry['slow']:.0f}; busy: {busy})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kernel")
    arguments = parser.parse_args()
    rows = rows_of(arguments.rounds)
    if arguments.json:
        print(json.dumps({"cores": CORES, "rows": rows}, indent=2))
        return
    for entry in rows:
        bar = f"bar {entry['bar']:>7}  {'met' if entry['met'] else 'MISSED'}" if "bar" in entry else ""
        print(f"{entry['what']:62} {entry['value']:>9.3f} {entry['unit']:12} {bar:20} {note(entry)}".rstrip())


if __name__ == "__main__":
    main()
