# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit bench`: how fast the losses are on the best device here, and what memory they take, beside
their peers. implementations.py says what is measured, cases.py how.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import re
from collections import Counter
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch

from npu_ce_jit import bootstrap
from npu_ce_jit._version import __version__
from npu_ce_jit.bench import cases
from npu_ce_jit.bench.cases import DTYPES, FORMS, LIMIT, Cell, Effort, Row
from npu_ce_jit.bench.implementations import IMPLEMENTATIONS, PEER_PACKAGES
from npu_ce_jit.errors import NpuCeJitError
from npu_ce_jit.npu import require_npu

_SHAPES = ((4096, 8080), (2048, 32000), (8, 152064), (65536, 10), (1024, 512, 16000))
_QUICK_SHAPES = ((49, 1000), (3, 8080), (49, 64, 1000))


def run_bench(arguments: list[str]) -> int:
    """Prints the report; 0 when our losses ran in all cells."""
    parser = argparse.ArgumentParser(
        prog="npu_ce_jit bench",
        description=f"{__doc__}\n{cases.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the report for a program")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds: to see that it works")
    parser.add_argument("--device", choices=("cpu", "npu"), help="instead of the NPU, where there is one")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="what torch.compile makes too, which takes minutes; so by default on a CPU, unless --quick",
    )
    parser.add_argument(
        "shapes",
        nargs="*",
        type=_shape,
        metavar="NxC",
        help="rows and classes of logits, as in 4096x8080; NxHxC of hidden states of H features, as in 1024x512x16000",
    )
    parsed = parser.parse_args(arguments)
    try:
        device = _device(parsed.device)
    except NpuCeJitError as error:
        parser.error(str(error))
    on_cpu = device.type == "cpu"
    compiles = on_cpu and not parsed.quick if parsed.compile is None else parsed.compile
    effort = Effort(2 if parsed.quick else 7, 10.0, compiles, 1 if on_cpu or parsed.quick else 10)
    shapes = tuple(parsed.shapes) or (_QUICK_SHAPES if parsed.quick else _SHAPES)
    rows: list[Row] = []
    for cell in _cells(shapes):
        measured = cases.measure(cell, IMPLEMENTATIONS[cell.loss], device, effort)
        rows += measured
        if not parsed.json:
            print(text_of(cell, measured))
    report = {**about(device), "rows": rows}  # after the runs, which may have loaded the kernels
    if parsed.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join([*absent(rows), "", *(f"{name}: {value}" for name, value in report.items() if name != "rows")]))
    return 0 if all("not run" not in row for row in rows if row["ours"]) else 1


def _cells(shapes: tuple[tuple[int, ...], ...]) -> list[Cell]:
    """Shapes of two numbers are for losses from logits, of three for those from hidden states."""
    cases = [
        (loss, rows, classes, features[0] if features else 0)
        for rows, *features, classes in shapes
        for loss in (("linear",) if features else ("cross_entropy", "drop-in"))
    ]
    return [
        Cell(loss, form, dtype, rows, classes, features)
        for (loss, rows, classes, features), dtype, form in product(cases, DTYPES, FORMS)
    ]


def _shape(text: str) -> tuple[int, ...]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected NxC or NxHxC, whole numbers from 1 up as in 4096x8080 or 1024x512x16000, got {text!r}"
        )
    return tuple(int(number) for number in match.groups() if number is not None)


def _device(asked: str | None) -> torch.device:
    toolchain = bootstrap.run().toolchain
    if asked == "cpu" or (asked is None and not toolchain.has_npu_software):
        return torch.device("cpu")
    toolchain.torch_npu_version.require()
    return require_npu()


def about(device: torch.device) -> dict[str, Any]:
    """The device, the kernels, and the versions of all packages that were measured."""
    session = bootstrap.current()
    assert session is not None
    kernels, toolchain = session.cpu if device.type == "cpu" else session.npu, session.toolchain
    if device.type == "cpu":
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    else:
        name = torch.get_device_module(device).get_device_name(device)
    return {
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": name,
        "kernels": kernels.key_name or str(kernels.problem or "the reference implementation"),
        "flags": kernels.artifact.manifest.get("bisheng_flags") if kernels.artifact else None,
        "npu_ce_jit": __version__,
        "torch": toolchain.torch_version.value,
        "torch_npu": toolchain.torch_npu_version.value,
        "CANN": toolchain.cann_version.value,
        "python": platform.python_version(),
        **{package: _version(package) for package in PEER_PACKAGES},
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", described.read_text(), re.MULTILINE) if described.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def text_of(cell: Cell, rows: list[Row]) -> str:
    """A cell's table, for a terminal."""
    lines = [f"\n{cell.loss}, {cell.form}, {cell.dtype}, {cell.shape}"]
    for row in rows:
        if "not run" in row:
            continue
        if "milliseconds" in row:
            unit = "GB/s" if "GB/s" in row else "GFLOP/s"
            time = f"{row['milliseconds']:10.3f} ms {row[unit]:7.1f} {unit:7} {row['share of the limit']:5.0%}"
        else:
            time = f"{'':34}"
        more = "" if row["implementation"] == LIMIT else f"{row['peak over logits']:6.2f} N*C  loss {row['value']:.6g}"
        ratios = ", ".join(f"{times:.1f}x {peer}" for peer, times in row.get("times as fast as", {}).items())
        lines.append(f"  {row['implementation']:34} {time} {more}  {ratios}".rstrip())
    return "\n".join(lines)


def absent(rows: list[Row]) -> list[str]:
    """The implementations that did not run, with the error's first line; once for all cells where it is the same."""
    failures = Counter((row["loss"], row["implementation"], row["not run"]) for row in rows if "not run" in row)
    measured = Counter((row["loss"], row["implementation"]) for row in rows)
    return [
        f"{loss}: {name} not run in {count} of {measured[loss, name]} cells: {why}"
        for (loss, name, why), count in failures.items()
    ]
