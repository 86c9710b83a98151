# SPDX-License-Identifier: Apache-2.0
"""Questions written as expressions: `Max(nan, 1)`, `FloatToHalf(65520)`, `WholeReduceSum(1, 2)[4]`.

An operand fills all lanes. For an operation across lanes, the operands are the values of successive lanes: `1 x31` is
31 lanes of 1, and the last operand fills all lanes that follow. `[4]` asks for the result in lane 4, else it is lane 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.board.probes import LANES, LEFT_ALONE, NoAnswerError, Probes

_DTYPES = {
    "Float": torch.float32,
    "Half": torch.float16,
    "Bfloat16": torch.bfloat16,
    "Int32": torch.int32,
    "Int64": torch.int64,
}
_ACROSS_LANES = re.compile(r"\w*Reduce\w*|GatherMask\w*|CreateVecIndex")


class Expression(NamedTuple):
    operation: str
    numbers: list[float]
    lane: int


def parse(text: str) -> Expression:
    match = re.fullmatch(r"(\w+)\(([^()]*)\)(?:\[(\d+)\])?", text)
    assert match is not None, f"no expression: {text}"
    numbers = [number for operand in match[2].split(", ") for number in _numbers(operand)]
    return Expression(match[1], numbers, int(match[3] or 0))


def answers(probes: Probes, texts: Iterable[str]) -> dict[str, str]:
    """What the chip computes for each, in the format of `shown`."""
    return {text: _answer(probes, parse(text)) for text in texts}


def shown(number: float) -> str:
    """The number in the 9 digits that identify a float32; tiny numbers in hexadecimal."""
    if number == LEFT_ALONE:
        return "left alone"
    if number != 0 and abs(number) < 1e-30:
        return re.sub(r"\.?0*p", "p", float(number).hex())
    return f"{number:.9g}" if isinstance(number, float) else str(number)


def _answer(probes: Probes, expression: Expression) -> str:
    operation, numbers, lane = expression
    if match := re.fullmatch(r"(\w+?)To(\w+)", operation):
        source, to = (_DTYPES[name] for name in match.groups())
        return shown(probes.cast(operation, torch.tensor(numbers, dtype=torch.float64).to(source), to)[lane].item())
    if _ACROSS_LANES.fullmatch(operation):
        lanes = torch.tensor(numbers + numbers[-1:] * (LANES - len(numbers)))
        return shown(probes.vector(operation, lanes, lanes)[lane].item())
    a, b = (torch.full((LANES,), number) for number in (numbers[0], numbers[-1]))
    return shown(_of_all_lanes(probes.vector(operation, a, b)))


def _of_all_lanes(result: Tensor) -> float:
    first = result[0].item()
    bits = result.view(torch.int32)
    if (bits != bits[0]).any():
        raise NoAnswerError(f"the same operands give {shown(first)} in lane 0 and another result in another lane")
    return first


def _numbers(operand: str) -> list[float]:
    number, _, times = operand.partition(" x")
    return [float.fromhex(number) if "0x" in number else float(number)] * int(times or 1)
