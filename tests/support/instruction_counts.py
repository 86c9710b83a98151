# SPDX-License-Identifier: Apache-2.0
"""The instructions that the CPU kernels execute for each element, counted by valgrind's callgrind.

They are built for AVX2, because valgrind does not know AVX-512. A count includes all from the entry of a call to its
return, also in libc and libm. It is reproducible, except for the cost of starting threads.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from kernel_builds import AVX2, compile_driver, compiler_name
from kernel_problems import ARGMAX, ENTROPY, LOG_PROB, LSE, OF_LOG_PROB, OF_LOSS, SUM, Z_LOSS, Problem, rounded
from recorded_counts import Counts


class Shape(NamedTuple):
    rows: int
    classes: int
    threads: int = 1
    positions: int = 0  # of an image, for [N, C, L] logits


SHAPES = {
    "wide": Shape(16, 8080),
    "small": Shape(8001, 10),
    "flat": Shape(1, 100_003, threads=2),  # whose columns are divided between threads
    "planar": Shape(2 * 3001, 19, positions=3001),
}
DTYPES = ("float32", "bfloat16", "float16")
DIRECTIONS = ("forward", "backward")


def where() -> str:
    return f"{compiler_name(AVX2)}, {AVX2}"


def problems() -> dict[str, Problem]:
    # numpy promises only for this generator that it never changes; the counts depend on how often a row's max grows.
    random = np.random.RandomState(0)
    found = {}
    for shape, (rows, classes, threads, positions) in SHAPES.items():
        logits, target = random.normal(0, 3, (rows, classes)), random.randint(classes, size=rows)
        for dtype in DTYPES:
            plain = Problem(
                dtype, rounded(logits, dtype), target, outputs=0, gradients={OF_LOSS: np.ones(1)}, threads=threads,
                positions=positions,
            )  # fmt: skip
            weight = rounded(np.linspace(0.5, 1.5, classes), plain.acc)
            of_log_prob = {OF_LOG_PROB: np.ones((rows, classes))}
            variants = {
                "loss": plain,
                "log_prob": replace(plain, outputs=LOG_PROB, gradients=plain.gradients | of_log_prob),
                "weighted smoothing": replace(plain, label_smoothing=0.1, weight=weight),
                "softcap and rest": replace(
                    plain, softcap=30.0, z_loss=1e-4, reduction=SUM, outputs=Z_LOSS | LSE | ARGMAX | ENTROPY
                ),
            }
            if positions:  # log_prob exists for [N, C] only
                del variants["log_prob"]
            found |= {f"{shape} {dtype} {variant}": problem for variant, problem in variants.items()}
    return found


def count(build_dir: Path) -> Counts:
    driver = compile_driver(AVX2, build_dir)
    cases = problems()
    # The first problem is sent twice: its first call also resolves symbols, and is not counted.
    sent = [next(iter(cases.values())), *cases.values()]
    # Two different patterns for one function: callgrind uses only the last option with the same pattern.
    patterns = {"zero-before": "npu_ce::{}(*", "dump-after": "*::{}(npu_ce::Problem*"}
    options = [f"--{option}={pattern.format(name)}" for option, pattern in patterns.items() for name in DIRECTIONS]
    file = build_dir / "callgrind"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={file}", *options, *driver]
    done = subprocess.run(command, input=b"".join(problem.encoded() for problem in sent), capture_output=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr.decode()}"

    calls = [(name, direction) for name in ["", *cases] for direction in DIRECTIONS]
    counts = {}
    for number, (name, direction) in enumerate(calls, 1):
        text = Path(f"{file}.{number}").read_text()
        assert f"--dump-after=npu_ce::{direction}(" in text
        total = re.search(r"^totals: (\d+)", text, re.MULTILINE)
        assert total is not None
        if name:
            counts[f"{name}, {direction}"] = int(total[1]) / cases[name].logits.size
    return counts
