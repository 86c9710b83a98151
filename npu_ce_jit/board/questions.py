# SPDX-License-Identifier: Apache-2.0
"""The questions, in the order in which they are asked: a new one is a row here, and its assumption one in `assumed`."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from npu_ce_jit.board import arithmetic, assumed, costs, expressions, losses, memory
from npu_ce_jit.board.probes import Probes
from npu_ce_jit.errors import NpuCeJitError


class Board:
    """What the questions are asked of: a device, the kernels that ask it, and the time that a question may take."""

    def __init__(self, device: torch.device, cores: int, probes: Probes | NpuCeJitError) -> None:
        self.device = device
        self.cores = cores
        self._probes = probes
        self._until = 0.0

    @property
    def probes(self) -> Probes:
        """Raises what kept them from being built."""
        if isinstance(self._probes, NpuCeJitError):
            raise self._probes
        return self._probes

    def give(self, seconds: float) -> None:
        self._until = time.perf_counter() + seconds

    @property
    def seconds(self) -> float:
        """The time that the question may still take."""
        return self._until - time.perf_counter()


class Question(NamedTuple):
    """`agrees` compares the answer with the assumption; None where a person has to compare them.

    `share` is the question's share of the time for all, for a question that can use any amount.
    """

    name: str
    ask: Callable[[Board], Any]
    assumed: Any = None
    agrees: Callable[[Any, Any], bool] | None = operator.eq
    share: float = 0.0


def questions() -> Iterator[Question]:
    """First what is computed, then what it costs; last what a device may refuse, or may not survive."""
    for name, expected in assumed.COMPUTED.items():
        yield Question(name, partial(_computed, list(expected)), expected)
    paddings = {name: Question(name, partial(_padded, name), assumed.PADDED.get(name)) for name in memory.PADDINGS}
    last = [paddings.pop(name) for name in memory.PADDINGS if name.startswith("pad_filler_unpadded")]
    yield from paddings.values()
    for name, ask in (("exp", arithmetic.exp), ("ln", arithmetic.ln), ("div", arithmetic.div)):
        expected = assumed.LAST_BITS[f"{name}_last_bits"]
        yield Question(f"{name}_last_bits", _of_probes(ask), expected, agrees=arithmetic.as_good_as)
    yield Question("scalar_read_after_launch", _of_probes(memory.stale_reads), {"stale": 0})
    yield Question(
        "launches_keep_their_place", lambda board: memory.launches_out_of_place(board.device), {"out of place": 0}
    )
    yield from _costs()
    yield from last
    yield Question(
        "npu_graph_step",
        lambda board: losses.graph_step(board.device),
        {"the bits of the eager step": True},
        agrees=losses.same_bits,
    )


def _costs() -> Iterator[Question]:
    def question(name: str, ask: Callable[[Board], Any], share: float = 0.0) -> Question:
        return Question(name, ask, assumed.COSTS.get(name), agrees=None, share=share)

    yield question("launch_cost", lambda board: costs.launch_cost(board.probes, board.cores))
    for name, writes in (("copy", True), ("read", False)):
        for by, ask in (("size", costs.bandwidth_by_size), ("working_set", costs.bandwidth_by_working_set)):
            yield question(f"{name}_bandwidth_by_{by}", partial(_bandwidth, ask, writes), share=0.1)
    yield question("vector_times", _of_probes(costs.vector_times))
    yield question("gather_mask_stall", _of_probes(costs.gather_mask_stall))
    yield question("losses", lambda board: losses.beside_peers(board.device, board.seconds), share=0.5)


def _computed(texts: list[str], board: Board) -> dict[str, str]:
    return expressions.answers(board.probes, texts)


def _padded(name: str, board: Board) -> dict[str, str]:
    return memory.padded(board.probes, memory.PADDINGS[name])


def _bandwidth(ask: Callable[..., Any], writes: bool, board: Board) -> Any:
    return ask(board.probes, board.cores, board.seconds, writes=writes)


def _of_probes(ask: Callable[[Probes], Any]) -> Callable[[Board], Any]:
    return lambda board: ask(board.probes)
