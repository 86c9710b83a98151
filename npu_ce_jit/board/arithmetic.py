# SPDX-License-Identifier: Apache-2.0
"""How many units of the last place the chip's Exp, Ln and Div are off, over a grid."""

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
    """Down to where results are subnormal, which are asked apart."""
    x = torch.linspace(-87, 0, _POINTS)
    return _compared(probes, "Exp", x, x, lambda a, _: a.exp())


def ln(probes: Probes) -> Answer:
    """From small numbers to what the sum of a large vocabulary comes to."""
    x = torch.logspace(-20, 18, _POINTS, base=2)
    return _compared(probes, "Ln", x, x, lambda a, _: a.log())


def div(probes: Probes) -> Answer:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, _POINTS, generator=generator) + 1).unbind()
    return _compared(probes, "Div", a, b, lambda a, b: a / b)


def as_good_as(answer: Any, assumed: Any) -> bool:
    return bool(answer["ulp at most"] <= assumed["ulp at most"])


def _compared(probes: Probes, name: str, a: Tensor, b: Tensor, exact: Callable[[Tensor, Tensor], Tensor]) -> Answer:
    """With the float32 that is nearest to the result in float64."""
    parts = zip(a.split(MOST_LANES), b.split(MOST_LANES), strict=True)
    came = torch.cat([probes.vector(name, *part) for part in parts])
    nearest = exact(a.double(), b.double()).float()
    off = (_ordered(came) - _ordered(nearest)).abs()
    return {"ulp at most": int(off.max()), "of points": _POINTS, "not the nearest": int((off > 0).sum())}


def _ordered(x: Tensor) -> Tensor:
    """Integers that are one apart where floats of one sign are neighbours."""
    bits = x.view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
