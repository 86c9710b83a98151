# SPDX-License-Identifier: Apache-2.0
"""The errors of the chip's Exp, Ln and Div over a grid, in units in the last place (ulp)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.board.probes import MOST_LANES, Probes

Answer = dict[str, int]

_LAUNCHES = 16
_POINTS = _LAUNCHES * MOST_LANES


def exp(probes: Probes) -> Answer:
    """Over arguments whose results are normal; subnormal results are asked for in `assumed.COMPUTED`."""
    x = torch.linspace(-87, 0, _POINTS)
    return _compared(probes, "Exp", x, x, lambda a, _: a.exp())


def ln(probes: Probes) -> Answer:
    """From small numbers to 2**18, the sum of exponentials over a large vocabulary."""
    x = torch.logspace(-20, 18, _POINTS, base=2)
    return _compared(probes, "Ln", x, x, lambda a, _: a.log())


def div(probes: Probes) -> Answer:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, _POINTS, generator=generator) + 1).unbind()
    return _compared(probes, "Div", a, b, lambda a, b: a / b)


def as_good_as(answer: Any, assumed: Any) -> bool:
    return bool(answer["ulp at most"] <= assumed["ulp at most"])


def _compared(probes: Probes, name: str, a: Tensor, b: Tensor, exact: Callable[[Tensor, Tensor], Tensor]) -> Answer:
    """Compares the chip's results with the float32 nearest to the result in float64."""
    parts = zip(a.split(MOST_LANES), b.split(MOST_LANES), strict=True)
    came = torch.cat([probes.vector(name, *part) for part in parts])
    nearest = exact(a.double(), b.double()).float()
    off = (_ordered(came) - _ordered(nearest)).abs()
    return {"ulp at most": int(off.max()), "of points": _POINTS, "not the nearest": int((off > 0).sum())}


def _ordered(x: Tensor) -> Tensor:
    """Integers that differ by 1 for neighbouring floats."""
    bits = x.view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
