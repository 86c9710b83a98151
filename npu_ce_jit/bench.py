# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_ce_jit bench`: how fast the losses are on the best device here, and what memory they take, beside
PyTorch's own and torch_npu's.

Milliseconds are medians of interleaved rounds, ratios those of the rounds' ratios. GB/s counts what has to be moved:
the logits read and, where it is asked, log_prob written; for backward, the logits read again and the gradient written.
Memory is the peak over the inputs, in units of the logits' N*C.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from npu_ce_jit import bootstrap
from npu_ce_jit._version import __version__
from npu_ce_jit.devices import require_npu
from npu_ce_jit.errors import NpuCeJitError
from npu_ce_jit.measure import Call, interleaved, median_ratio, peak_memory
from npu_ce_jit.op.function import cross_entropy, npu_cross_entropy_loss

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SHAPES = ((4096, 8080), (2048, 32000), (8, 152064), (65536, 10))
_QUICK_SHAPES = ((49, 1000), (3, 8080))
_OURS = ("cross_entropy", "npu_cross_entropy_loss")
_FORMS = ("forward", "forward + backward")


class Contestant(NamedTuple):
    name: str
    loss: Callable[[Tensor, Tensor], Any]
    log_prob: bool  # whether it returns that too


class Effort(NamedTuple):
    shapes: tuple[tuple[int, int], ...]
    rounds: int
    calls: int  # of each round: on an NPU many, or the wait for the device would count


def run_bench(arguments: list[str]) -> int:
    """Prints the report; 0 when both of our losses ran everywhere."""
    parser = argparse.ArgumentParser(
        prog="npu_ce_jit bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the report for a program")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds: to see that it works")
    parser.add_argument("--device", choices=("cpu", "npu"), help="instead of the NPU, where there is one")
    parser.add_argument("shapes", nargs="*", type=_shape, metavar="NxC", help="rows and classes, as in 4096x8080")
    parsed = parser.parse_args(arguments)
    try:
        device = _device(parsed.device)
    except NpuCeJitError as error:
        parser.error(str(error))
    rounds, calls = (2, 1) if parsed.quick else (7, 1 if device.type == "cpu" else 10)
    shapes = tuple(parsed.shapes) or (_QUICK_SHAPES if parsed.quick else _SHAPES)
    rows = []
    for row in _rows(device, Effort(shapes, rounds, calls)):
        rows.append(row)
        if not parsed.json:
            _print(row)
    about = _about(device)  # the kernels that ran are known by now
    if parsed.json:
        print(json.dumps({**about, "rows": rows}, indent=2))
    else:
        print("\n" + "\n".join(f"{name}: {value}" for name, value in about.items()))
    return 0 if all("not run" not in row for row in rows if row["loss"] in _OURS) else 1


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected NxC, two whole numbers from 1 up as in 4096x8080, got {text!r}")
    return int(match[1]), int(match[2])


def _device(asked: str | None) -> torch.device:
    toolchain = bootstrap.run().toolchain
    if asked == "cpu" or (asked is None and not toolchain.has_npu_software):
        return torch.device("cpu")
    toolchain.torch_npu_version.require()
    return require_npu()


def _about(device: torch.device) -> dict[str, Any]:
    session = bootstrap.current()
    assert session is not None
    kernels, toolchain = session.cpu if device.type == "cpu" else session.npu, session.toolchain
    if device.type == "cpu":
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    else:
        name = torch.get_device_module(device).get_device_name(device)
    return {
        "device": name,
        "kernels": kernels.key_name or str(kernels.problem or "the reference implementation"),
        "flags": kernels.artifact.manifest.get("rung") if kernels.artifact else None,
        "npu_ce_jit": __version__,
        "torch": toolchain.torch_version.value,
        "torch_npu": toolchain.torch_npu_version.value,
        "CANN": toolchain.cann_version.value,
        "python": platform.python_version(),
    }


def _contestants(device: torch.device) -> tuple[Contestant, ...]:
    losses = (
        Contestant(_OURS[0], cross_entropy, False),
        Contestant(_OURS[1], npu_cross_entropy_loss, True),
        Contestant("F.cross_entropy", F.cross_entropy, False),
    )
    if device.type == "cpu":
        return losses
    return (*losses, Contestant("torch_npu.npu_cross_entropy_loss", torch.ops.npu.npu_cross_entropy_loss, True))


def _rows(device: torch.device, effort: Effort) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    for dtype in _DTYPES:
        for rows, classes in effort.shapes:
            x = torch.randn(rows, classes).to(dtype).to(device)
            target = torch.randint(classes, (rows,)).to(device)
            for form in _FORMS:
                case = {"dtype": str(dtype).removeprefix("torch."), "rows": rows, "classes": classes, "form": form}
                yield from ({**case, **row} for row in _compare(x, target, form, effort))


def _compare(x: Tensor, target: Tensor, form: str, effort: Effort) -> Iterator[dict[str, Any]]:
    contestants = _contestants(x.device)
    calls: dict[str, Call] = {}
    values: dict[str, float] = {}
    peaks: dict[str, float | None] = {}
    failures: dict[str, str] = {}
    logits_bytes = x.numel() * x.element_size()
    for name, loss, _ in contestants:
        call = _call(loss, x, target, backward=form == _FORMS[1])
        try:
            values[name] = call()[0].item()
            peak = peak_memory(call, x.device)
            peaks[name] = None if peak is None else peak / logits_bytes
            calls[name] = call
        except Exception as error:  # noqa: BLE001  a peer that does not run here is told, and the others go on
            failures[name] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    wait = (lambda: None) if x.device.type == "cpu" else torch.get_device_module(x.device).synchronize
    seconds = interleaved(calls, effort.rounds, effort.calls, wait)
    for name, _, log_prob in contestants:
        if name in failures:
            yield {"loss": name, "not run": failures[name]}
            continue
        median = statistics.median(seconds[name])
        passes = 1 + log_prob + (2 if form == _FORMS[1] else 0)
        peers = [peer for peer in calls if name in _OURS and peer not in _OURS]
        yield {
            "loss": name,
            "value": values[name],
            "milliseconds": median * 1e3,
            "GB/s": passes * logits_bytes / median / 1e9,
            "peak over logits": peaks[name],
            "times as fast as": {peer: median_ratio(seconds, of=peer, to=name) for peer in peers},
        }


def _call(
    loss: Callable[[Tensor, Tensor], Any], x: Tensor, target: Tensor, *, backward: bool
) -> Callable[[], tuple[Tensor, ...]]:
    """Returns the loss, and keeps what else it returned until after the backward, as who wanted it would."""

    def call() -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_(backward)
        outputs = loss(leaf, target)
        value, *kept = (outputs,) if isinstance(outputs, Tensor) else outputs
        gradient = torch.autograd.grad(value.sum(), leaf) if backward else ()
        return value.detach(), *kept, *gradient

    return call


def _print(row: dict[str, Any]) -> None:
    if row["loss"] == _OURS[0]:
        print(f"\n{row['form']}, {row['dtype']}, {row['rows']} x {row['classes']}")
    if "not run" in row:
        print(f"  {row['loss']:32} not run: {row['not run']}")
        return
    peak, ratios = row["peak over logits"], row["times as fast as"]
    memory = " " * 10 if peak is None else f"{peak:5.2f} N*C"
    told = ", ".join(f"{ratio:.1f}x {peer}" for peer, ratio in ratios.items())
    figures = f"{row['milliseconds']:9.3f} ms {row['GB/s']:8.1f} GB/s {memory}"
    print(f"  {row['loss']:32} {figures}  loss {row['value']:.6g}  {told}".rstrip())
