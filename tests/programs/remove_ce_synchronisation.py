# SPDX-License-Identifier: Apache-2.0
"""Removes each barrier, flag, queue call and tail of the cross-entropy kernels in turn: does the virtual NPU notice?

    tests/virtual_cann/run python tests/programs/remove_ce_synchronisation.py [file ...]

prints, for each removal, the rules that are then broken and where, or that the results are wrong, or that it survived;
and at the end the survivors, each with the reason why it is harmless. It takes minutes; file names restrict it to the
calls in these files.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import checkout_path  # noqa: F401  before what the tests share

# isort: split
import backward_npu
import npu_kernels
import torch
from backward_cases import OUTPUTS, inputs_of
from npu_kernels import ROOT, Arguments
from remove_synchronisation import (
    Case,
    Judged,
    Ran,
    Removal,
    add_switches,
    compile_switched,
    in_processes,
    judge_calls,
    summary,
)
from torch import Tensor
from virtual_cann import observe

UNITS = [*(f"forward/{name}.asc" for name in ("forward", "merge", "log_prob", "reduce")), "backward/backward.asc"]
EVERYTHING = ("z_loss", "log_prob", "lse", "argmax", "entropy")
PROCESSES = 2

# Reason why the kernels are right without a call -> the calls: file, function, call, and its index in the function.
REASONS = {
    "a step leaves what it wrote ready for the next one, which has a barrier of its own before it reads that": """
        backward/narrow.h TakeElements VectorBarrier 3
        backward/wide.h TakeElements VectorBarrier 2
        backward/many_rows.h Subtract VectorBarrier 1
        forward/merge.asc Run VectorBarrier 1
        forward/row_finish.h CrossEntropy VectorBarrier 10
        forward/row_finish.h ZLoss VectorBarrier 4
        forward/row_tile.h Min VectorBarrier 1
        forward/unit_lanes.h Finish VectorBarrier 6
        forward/unit_lanes.h FinishArgmax VectorBarrier 3
        forward/wide.h RunGroup VectorBarrier 2
        forward/wide_log_prob.h Normalise VectorBarrier 2
        forward/wide_tile.h Add VectorBarrier 5
        forward/wide_tile.h AddRaised VectorBarrier 3
        forward/wide_tile.h AddWeighted VectorBarrier 2
        forward/wide_tile.h AddWeighted VectorBarrier 4
        forward/wide_tile.h AddEntropy VectorBarrier 3
    """,
    "what Init fills is read only behind barriers of the groups' own": """
        backward/rows.h TakeVectors VectorBarrier 1
        common/lanes.h CountBytes VectorBarrier 1
        common/logits.h Init VectorBarrier 1
        forward/merge.asc Init VectorBarrier 1
        forward/row_sums.h Init VectorBarrier 1
        forward/states.h Init VectorBarrier 1
        common/target.h Init VectorBarrier 1
    """,
}
HARMLESS = {place.strip(): reason for reason, places in REASONS.items() for place in places.strip().splitlines()}


def sources() -> list[Path]:
    folders = [ROOT / "ascendc" / name for name in ("abi", "ub", "common", "forward", "backward")]
    return sorted(path for folder in folders for path in folder.iterdir())


def add_switches_to_all(folder: Path) -> list[Removal]:
    return add_switches(ROOT / "ascendc", sources(), folder)


def violations() -> list[dict[str, Any]]:
    return [violation for report in observe.reports() for violation in report["violations"]]


def forward_case(
    rows: int,
    classes: int,
    dtype: torch.dtype,
    tiled_as: int | None = None,
    sums: tuple[int, int] | None = None,
    **more: Any,
) -> Case:
    """`tiled_as`: tiles as for that many rows, which are not split into spans."""
    torch.manual_seed(classes)
    logits = (torch.randn(rows, classes) * 3).to(dtype)
    target = torch.randint(classes, (rows,), dtype=more.pop("target_dtype", torch.int64))
    target[::4], target[1::5] = classes - 1, -100  # the last class is in a tail
    weight = torch.rand(classes) + 0.1 if more.pop("weight", False) else None
    arguments = Arguments(weight=weight, **more)

    def case(library: ctypes.CDLL) -> Ran:
        npu_kernels.library = lambda: library
        result = npu_kernels.forward(logits, target, arguments, cores=2, plan_rows=tiled_as, sums=sums)
        return Ran(violations(), list(result.tensors.values()))

    return case


@cache
def planner() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        return backward_npu.compile_planner(Path(folder) / "planner.so")


def backward_case(
    rows: int, classes: int, dtype: torch.dtype, outputs: tuple[str, ...] = ("loss",), cores: int = 2, **options: Any
) -> Case:
    torch.manual_seed(classes)
    inputs = inputs_of(rows, classes, dtype, outputs, **options)
    inputs.target[::4] = classes - 1

    def case(library: ctypes.CDLL) -> Ran:
        gradient: list[Tensor] = []
        try:
            gradient = [backward_npu.run(library, planner(), inputs, cores=cores).gradient]
        except AssertionError:  # run() asserts that no rule is broken
            assert violations()
        return Ran(violations(), gradient)

    return case


ALL_OPTIONS = {"weight": True, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 30.0, "logit_scale": 1.1}

ALONE: list[dict[str, Any]] = [
    {"logit_scale": 0.7},
    {"softcap": 5.0},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0, "weight": True},
    {"weight": True, "reduction": "none"},
    {"outputs": ("log_prob",)},
    {"outputs": ("argmax",)},
    {"outputs": ("entropy",)},
    {"outputs": ("z_loss",), "reduction": "none"},
    {"outputs": ("z_loss",), "reduction": "none", "z_loss": 0.01, "loss_dtype": torch.bfloat16},
]
ALONE_BACKWARD: list[dict[str, Any]] = [
    {"logit_scale": 0.7},
    {"softcap": 5.0},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "weight": True},
    {"z_loss": 0.01, "outputs": ("z_loss",)},
    *({"outputs": (name,)} for name in ("lse", "entropy", "log_prob")),
]


def forward_cases(dtype: torch.dtype) -> list[Case]:
    everything = ALL_OPTIONS | {"outputs": EVERYTHING}
    return [
        # Rows of ten classes, in several tiles and groups; rows longer than a repeat.
        forward_case(4201, 10, dtype),
        forward_case(301, 10, dtype, **everything, target_dtype=torch.int32),
        forward_case(101, 333, dtype, **everything),
        forward_case(7, 333, dtype, reduction="none", loss_dtype=torch.bfloat16, label_smoothing=0.1),
        # Wide rows, several groups; several tiles.
        forward_case(70, 2049, dtype, tiled_as=1200),
        forward_case(3, 40011, dtype, tiled_as=1200),
        forward_case(9, 20011, dtype, tiled_as=1200, **everything),
        forward_case(3, 20011, dtype, tiled_as=1200, label_smoothing=0.1, outputs=("lse", "entropy")),
        # log_prob from rows in UB.
        forward_case(9, 5003, dtype, tiled_as=1200, outputs=("log_prob",)),
        forward_case(5, 20011, dtype, tiled_as=1200, outputs=("log_prob",), softcap=5.0, weight=True),
        forward_case(5, 70001, dtype, tiled_as=1200, outputs=("log_prob",)),
        # Spans and their merge.
        forward_case(2, 100_003, dtype, **everything),
        forward_case(70, 14_303, dtype, label_smoothing=0.1),
        forward_case(3, 20011, dtype, weight=True),
        forward_case(150, 7001, dtype, weight=True),  # groups of the merge
        # Sums of rows of every length; reductions of more than one block, and of more than one read.
        *(forward_case(301, 3, dtype, sums=(rows, 20), **ALL_OPTIONS) for rows in (1, 2, 8, 64)),
        forward_case(9001, 1, dtype, sums=(1, 9001), weight=True, reduction="sum"),
        forward_case(9001, 3, dtype, sums=(1, 4500)),
        # One option at a time: the barriers of one option do not order the work of another.
        *(forward_case(5, classes, dtype, **option) for classes in (13, 333, 2049, 9001) for option in ALONE),
        *(forward_case(5, 2049, dtype, tiled_as=1200, **option) for option in ALONE),
    ]


def backward_cases(dtype: torch.dtype) -> list[Case]:
    return [
        backward_case(4201, 10, dtype, reduction="mean"),
        backward_case(301, 10, dtype, OUTPUTS, **ALL_OPTIONS),
        backward_case(301, 13, dtype, ("loss", "log_prob"), weight=True, target_dtype=torch.int32),
        backward_case(150, 333, dtype, OUTPUTS, **ALL_OPTIONS),
        backward_case(150, 1009, dtype, reduction="mean"),
        backward_case(4, 30011, dtype),
        backward_case(3, 30011, dtype, OUTPUTS, **ALL_OPTIONS),
        backward_case(5, 3001, dtype, ("lse", "log_prob"), cores=7, weight=True, label_smoothing=0.1),
        *(backward_case(5, classes, dtype, **option) for classes in (13, 250, 2049) for option in ALONE_BACKWARD),
        backward_case(9, 10, dtype, ()),
        backward_case(3, 3001, dtype, ()),
    ]


def cases() -> list[Case]:
    dtypes = (torch.float32, torch.bfloat16)
    return [case for dtype in dtypes for case in forward_cases(dtype) + backward_cases(dtype)]


def places_of(removals: list[Removal]) -> list[str]:
    """The place of each call, without its changing line number: file, function, call, its index in the function."""
    lines = {path.relative_to(ROOT / "ascendc").as_posix(): path.read_text().splitlines() for path in sources()}
    seen: Counter[str] = Counter()
    places = []
    for removal in removals:
        begins = (line for line in reversed(lines[removal.file][: removal.line]) if "__aicore__" in line)
        function = next(begins, "").partition("(")[0].split()[-1:]
        place = " ".join([removal.file, *function, removal.text.partition("(")[0]])
        seen[place] += 1
        places.append(f"{place} {seen[place]}")
    return places


def judge(files: list[str]) -> list[tuple[Removal, str, Judged]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = add_switches_to_all(folder)
        library = compile_switched(folder, UNITS)
        calls = [i for i, removal in enumerate(found) if not files or removal.file in files]
        shares = [calls[i::PROCESSES] for i in range(PROCESSES)]
        commands = [[__file__, "--run", str(library), json.dumps(share)] for share in shares]
        judged = in_processes(commands, [{}] * PROCESSES)
    of_call = {
        call: one for share, ones in zip(shares, judged, strict=True) for call, one in zip(share, ones, strict=True)
    }
    places = places_of(found)
    return [(found[call], places[call], of_call[call]) for call in calls]


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        library, calls = sys.argv[2:]
        json.dump(judge_calls(Path(library), cases(), json.loads(calls)), sys.stdout)
        return
    survivors = []
    for removal, place, judged in (verdicts := judge(sys.argv[1:])):
        otherwise = "wrong numbers" if judged.wrong else "SURVIVED" if judged.reached else "NOT REACHED by any case"
        sys.stdout.write(
            f"{removal.file}:{removal.line}: {removal.text}\n    {summary(judged.violations, otherwise)}\n"
        )
        if judged.survived:
            survivors.append((removal, place))
    sys.stdout.write(f"\n{len(verdicts)} removals, {len(survivors)} survived\n")
    for removal, place in survivors:
        sys.stdout.write(f"{place} (line {removal.line})\n    {HARMLESS.get(place, 'NOT EXPLAINED')}\n")
    sys.exit(any(place not in HARMLESS for _, place in survivors))


if __name__ == "__main__":
    main()
