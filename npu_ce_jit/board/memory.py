# SPDX-License-Identifier: Apache-2.0
"""What DataCopyPad puts beside a block, and whether launches see what was written before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from npu_ce_jit.bench.implementations import IMPLEMENTATIONS
from npu_ce_jit.board.probes import LEFT_ALONE, PADDING_VALUE, Probes

_ROUNDS = 50
_BLOCK_BYTES = 32


class Padding(NamedTuple):
    """In elements; a block has 3 fewer than 32 bytes hold."""

    is_pad: bool
    left: int
    right: int


PADDINGS = {
    "pad_filler_left0_right0": Padding(True, 0, 0),
    "pad_filler_right": Padding(True, 0, 3),
    "pad_filler_right_short": Padding(True, 0, 1),
    "pad_filler_left": Padding(True, 2, 0),
    "pad_filler_unpadded_left0_right0": Padding(False, 0, 0),
    "pad_filler_unpadded_right": Padding(False, 0, 3),
}


def padded(probes: Probes, padding: Padding) -> dict[str, str]:
    """What is left and right of the block, in words; one answer if both element sizes agree, else one for each."""
    found = {f"{dtype.itemsize} bytes": _padded(probes, dtype, padding) for dtype in (torch.int32, torch.int16)}
    one, other = found.values()
    return one if one == other else {f"{side}, {size}": what for size, at in found.items() for side, what in at.items()}


def _padded(probes: Probes, dtype: torch.dtype, padding: Padding) -> dict[str, str]:
    whole = _BLOCK_BYTES // dtype.itemsize
    count = whole - 3
    came = probes.padded(dtype, count, **padding._asdict()).tolist()
    end = padding.left + count
    sides = {"left": came[: padding.left], "right": came[end:whole], "behind": came[whole:]}
    named = {side: _named(numbers) for side, numbers in sides.items() if numbers}
    if named["behind"] == "left alone":
        del named["behind"]
    if came[padding.left : end] != list(range(1, count + 1)):
        named["block"] = f"not the block, but {came[padding.left : end]}"
    return named


def _named(numbers: list[int]) -> str:
    names = {1: "the first element", PADDING_VALUE: "the padding value", 0: "0", LEFT_ALONE: "left alone"}
    if len(set(numbers)) == 1 and numbers[0] in names:
        return names[numbers[0]]
    return " ".join(map(str, numbers))


def stale_reads(probes: Probes) -> dict[str, int]:
    """Counts reads of the value before the DMA's write: GetValue reads through the data cache, which a DMA bypasses."""
    rounds = probes.fill_and_read(_ROUNDS)
    return {"stale": sum(number != value for number, values in enumerate(rounds) for value in values)}


def launches_out_of_place(device: torch.device) -> dict[str, int]:
    """Counts wrong losses of logits that copy_ has just overwritten, while the host runs ahead of torch_npu's queue."""
    loss: Callable[..., Any] = IMPLEMENTATIONS["cross_entropy"][0].load()
    generator = torch.Generator().manual_seed(0)
    rounds = torch.randn(_ROUNDS, 64, 1000, generator=generator)
    target = torch.arange(64)
    expected = torch.nn.functional.cross_entropy(rounds.transpose(1, 2), target.expand(_ROUNDS, 64), reduction="none")
    sources, x, there = rounds.to(device), torch.empty(64, 1000).to(device), target.to(device)
    losses = []
    for source in sources:
        x.copy_(source)
        losses.append(loss(x, there))
    came = torch.stack([one.cpu() for one in losses])
    wrong = ~((came - expected.mean(1)).abs() <= 1e-4)
    return {"out of place": int(wrong.sum())}
