# SPDX-License-Identifier: Apache-2.0
"""Whether fresh kernels compute what they should: the only proof that a compiler's flags were the right ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.errors import NpuCeJitError, SelfCheckError
from npu_ce_jit.npu import require_supported_chip
from npu_ce_jit.op import reference
from npu_ce_jit.op.autograd.functions import OPS
from npu_ce_jit.op.schema import ARGMAX, ENTROPY, LOG_PROB, LSE, MEAN, NONE, SUM, Z_LOSS, LossTerms
from npu_ce_jit.op.torch_private import outside_every_mode

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # garbage is further off, rounding is not
_SMALL = 1e-2  # of an output's largest element: smaller ones may be as far off as this much

_IGNORED = -100
_ALL = Z_LOSS | LOG_PROB | LSE | ARGMAX | ENTROPY
_FORWARD = ("loss", "z_loss", "log_prob", "lse", "argmax", "entropy", "row_stats", "denominators")
# In the order in which they are computed, row statistics first, so that the first wrong output names the kernel.
_IN_ORDER = ("row_stats", "lse", "argmax", "entropy", "log_prob", "denominators", "z_loss", "loss", "gradient")

# What the runtime says of a core on which a kernel raised an exception, hung or trapped. A device that is lost, memory
# that is faulty and resources that run out have other numbers, and say nothing of the kernels.
_KERNEL_FAILED = re.compile(
    r"\b5070(14|15|16|34|35|36)\b|expected its kernels to be launched, got (nothing|ACL error (?!207))"
)


class Case(NamedTuple):
    """A problem, and for each output the NPU kernels that compute it; {dtype} stands for the logits' dtype.

    These are the kernel that writes the output, and those whose results it reads, if no other output shows them.
    """

    rows: int
    classes: int  # such that a row is no multiple of 32 bytes
    target_dtype: torch.dtype
    terms: LossTerms
    outputs: int
    gradients: tuple[str, ...]  # the outputs whose gradients backward gets; without one it does not run
    of_rows: tuple[str, ...]
    log_prob: tuple[str, ...]
    totals: tuple[str, ...]
    gradient: tuple[str, ...]

    def kernels(self, dtype: torch.dtype, output: str | None = None) -> list[str]:
        """Those that an output shows, or all."""
        if output is None:
            names = self.of_rows + self.log_prob + self.totals + self.gradient
        elif output in ("log_prob", "gradient"):
            names = getattr(self, output)
        elif output == "denominators" or (output in ("loss", "z_loss") and self.terms.reduction != NONE):
            names = self.totals
        else:
            names = self.of_rows
        return list(dict.fromkeys(name.format(dtype=str(dtype).removeprefix("torch.")) for name in names))


_NARROW, _WIDE = "npu_ce_forward_narrow_{dtype}", "npu_ce_forward_wide_{dtype}"
_NARROW_BACKWARD, _WIDE_BACKWARD = "npu_ce_backward_narrow_{dtype}", "npu_ce_backward_wide_{dtype}"
_SUMS = "npu_ce_backward_sums_{dtype}"

# Each in every dtype.
CASES = (
    # Rows of less than a vector on several blocks, and each row's losses.
    Case(
        1001, 37, torch.int64, LossTerms(NONE, _IGNORED, 0.1, 1e-3, 0.0, 1.0), _ALL,
        ("loss", "z_loss", "log_prob", "lse", "entropy"),
        of_rows=(_NARROW,), log_prob=(_NARROW,), totals=("npu_ce_reduce", _NARROW), gradient=(_NARROW_BACKWARD,),
    ),
    # So few elements that one block computes them all, and reduces them too.
    Case(
        97, 19, torch.int32, LossTerms(MEAN, _IGNORED, 0.0, 1e-3, 0.0, 1.0), _ALL, ("loss", "z_loss", "entropy"),
        of_rows=(_NARROW,), log_prob=(_NARROW,), totals=(_NARROW,), gradient=(_NARROW_BACKWARD,),
    ),
    # Rows of several vectors.
    Case(
        130, 299, torch.int32, LossTerms(MEAN, _IGNORED, 0.2, 1e-3, 5.0, 0.7), _ALL, ("loss", "log_prob", "lse"),
        of_rows=(_NARROW,), log_prob=(_NARROW,), totals=("npu_ce_reduce", _NARROW), gradient=(_NARROW_BACKWARD,),
    ),
    # Rows of one span, whose log_prob is made of what stayed in UB.
    Case(
        33, 1031, torch.int64, LossTerms(MEAN, _IGNORED, 0.0, 1e-3, 0.0, 1.0), _ALL, ("loss", "z_loss", "entropy"),
        of_rows=(_WIDE,), log_prob=(_WIDE,), totals=("npu_ce_reduce", _WIDE), gradient=(_WIDE_BACKWARD,),
    ),
    # The same, on one block, which also reduces them.
    Case(
        5, 2051, torch.int64, LossTerms(SUM, _IGNORED, 0.0, 1e-3, 0.0, 1.0), _ALL, ("loss", "lse"),
        of_rows=(_WIDE,), log_prob=(_WIDE,), totals=(_WIDE,), gradient=(_WIDE_BACKWARD,),
    ),
    # Rows of several spans, which one block merges and reduces.
    Case(
        3, 40009, torch.int32, LossTerms(SUM, _IGNORED, 0.1, 1e-3, 0.0, 1.0), _ALL, ("loss", "log_prob", "lse"),
        of_rows=("npu_ce_merge", _WIDE), log_prob=("npu_ce_log_prob_{dtype}",), totals=("npu_ce_merge",),
        gradient=(_SUMS, "npu_ce_backward_sums_float32", _WIDE_BACKWARD),
    ),
)  # fmt: skip
# Too large for a CPU to compute in a moment: on an NPU alone, in float32.
LARGE_CASES = (
    # More rows of several spans than one block merges; with a million elements, rows are cut for every core.
    Case(
        66, 16_007, torch.int64, LossTerms(MEAN, _IGNORED, 0.1, 1e-3, 0.0, 1.0), _ALL - LOG_PROB, (),
        of_rows=("npu_ce_merge", _WIDE), log_prob=(), totals=("npu_ce_reduce", "npu_ce_merge"), gradient=(),
    ),
    # More than the 16,384 sums of 64 rows that one block of the reduction adds up.
    Case(
        1_060_007, 2, torch.int32, LossTerms(MEAN, _IGNORED, 0.0, 1e-3, 0.0, 1.0), LSE, (),
        of_rows=(_NARROW,), log_prob=(), totals=("npu_ce_reduce_last", "npu_ce_reduce", _NARROW), gradient=(),
    ),
)  # fmt: skip


def cases(device: torch.device) -> Iterator[tuple[Case, torch.dtype]]:
    """The cases that run on a device of this type, in this order."""
    yield from ((case, dtype) for dtype in _TOLERANCE for case in CASES)
    if device.type != "cpu":
        yield from ((case, torch.float32) for case in LARGE_CASES)


def chip(device: torch.device) -> str:
    """The name of the chip: kernels that one computes right may be wrong on another."""
    name = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return str(name(device)) if name else device.type


def require_supported(device: torch.device) -> None:
    """Raises ToolchainError for a chip that the kernels are not made for."""
    require_supported_chip(chip(device), "Call .cpu() on the tensors.")


def run(device: torch.device) -> None:
    """Runs every kernel, in all of its dtypes. SelfCheckError says what was expected, what came, and from which kernel.

    What the process has set, such as its default dtype, does not matter. Any other error says nothing about the
    kernels: there was no memory for them, or the device did not work before.
    """
    with outside_every_mode():
        for case, dtype in cases(device):
            _check(device, case, dtype)


def _check(device: torch.device, case: Case, dtype: torch.dtype) -> None:
    logits, target, weight, gradients = _problem(case, dtype)
    forward = (logits, target, weight, *case.terms, case.outputs, torch.float32)
    expected = _named(reference.forward(*forward))
    # backward gets the reference's forward results, so that a wrong gradient is backward's fault alone.
    entropy = expected["entropy"] if "entropy" in case.gradients else None
    saved = (expected["row_stats"], entropy, expected["denominators"])
    backward: tuple[Any, ...] = (*gradients, logits, target, weight, *saved, *case.terms)
    if case.gradients:
        expected["gradient"] = reference.backward(*backward)
    got = _computed(device, case, dtype, forward, backward)
    for name in _IN_ORDER:
        if name in expected:
            _compare(device, case, dtype, name, expected[name], got[name])


def _computed(
    device: torch.device, case: Case, dtype: torch.dtype, forward: Sequence[Any], backward: Sequence[Any]
) -> dict[str, Tensor]:
    there = _Copies(device)
    forward, backward = there.of(forward), there.of(backward)
    there.require_whole()  # waits for what was queued before, so that its errors are not taken for the kernels'
    try:
        results = _named(OPS._forward.default(*forward))
        if case.gradients:
            results["gradient"] = OPS._backward.default(*backward)
        return {name: result.cpu() for name, result in results.items()}
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if device.type != "cpu" and not _KERNEL_FAILED.search(str(error)):
            raise
        some = ", ".join(case.kernels(dtype))
        raise _failed(device, dtype, f"one of {some} raised {type(error).__name__}: {error}") from error


class _Copies:
    """Copies of CPU tensors on a device, one of each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, arguments: Sequence[Any]) -> list[Any]:
        return [self._of(one) if isinstance(one, Tensor) else one for one in arguments]

    def _of(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._made:
            self._made[id(tensor)] = tensor, tensor.to(self._device)
        return self._made[id(tensor)][1]

    def require_whole(self) -> None:
        for here, there in self._made.values():
            if not torch.equal(there.cpu(), here):
                raise NpuCeJitError(
                    f"The kernels could not be checked: what was copied to {self._device} came back as something else.",
                    "See whether PyTorch's own operators compute there.",
                )


def _problem(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    rows, classes = case.rows, case.classes
    logits = _spread(rows, classes).mul(4).to(dtype)
    row = torch.arange(rows, device="cpu", dtype=torch.int64)
    target = torch.where(row % 5 == 3, _IGNORED, (31 * row + classes - 1) % classes).to(case.target_dtype)
    weight = torch.linspace(0.5, 2.0, classes, device="cpu", dtype=torch.float32)
    losses = (rows,) if case.terms.reduction == NONE else ()
    factor = rows if case.terms.reduction == MEAN else 1  # undoes the mean's division: all gradients have like sizes
    shapes = {"loss": losses, "z_loss": losses, "log_prob": (rows, classes), "lse": (rows,), "entropy": (rows,)}
    factors = {"loss": factor, "z_loss": factor}
    gradients = [
        _spread(*shape).add(1.25).mul(factors.get(name, 1)).to(dtype if name == "log_prob" else torch.float32)
        if name in case.gradients else None
        for name, shape in shapes.items()
    ]  # fmt: skip
    return logits, target, weight, gradients


def _spread(*shape: int) -> Tensor:
    """Numbers between -1 and 1, without a random generator; no two rows or columns are alike."""
    count = torch.Size(shape).numel()
    step = torch.arange(1, count + 1, device="cpu", dtype=torch.float64)
    return (step * step * 0.6180339887498949).frac().mul(2).sub(1).reshape(shape)


def _named(results: Sequence[Tensor]) -> dict[str, Tensor]:
    """The outputs that were asked for, by name."""
    return {name: result for name, result in zip(_FORWARD, results, strict=True) if result.numel()}


def _compare(device: torch.device, case: Case, dtype: torch.dtype, name: str, right: Tensor, came: Tensor) -> None:
    if right.shape != came.shape or right.dtype != came.dtype:
        raise _failed(
            device, dtype,
            f"expected {name} of {right.dtype} and {list(right.shape)}, got {came.dtype} and {list(came.shape)}",
        )  # fmt: skip
    exact = right.double()
    allowed = torch.clamp(exact.abs(), min=_SMALL * exact.abs().max().item()) * _TOLERANCE.get(right.dtype, 0.0)
    wrong = ~((came.double() - exact).abs() <= allowed)  # NaN is wrong
    if not wrong.any():
        return
    at = tuple(wrong.nonzero()[0].tolist())
    where = f"{name}{list(at)}" if at else name
    what = f"expected {where} = {right[at].item():.6g}, got {came[at].item():.6g}"
    if device.type != "cpu":
        first, *others = case.kernels(dtype, name)
        what += f", from {' or '.join([first, *others])}"
    raise _failed(device, dtype, f"{what}, of {case.rows} x {case.classes} logits")


def _failed(device: torch.device, dtype: torch.dtype, what: str) -> SelfCheckError:
    name = "CPU" if device.type == "cpu" else "NPU"
    return SelfCheckError(
        f"The {name} kernels fail their self-check in {str(dtype).removeprefix('torch.')}: {what}.",
        "They are not used, nor built with the same flags again. Start the program again to have others tried, or call "
        ".cpu(); and report this with the output of `python -m npu_ce_jit doctor`. To have these flags tried again: "
        "`python -m npu_ce_jit clean --rejected`.",
    )
