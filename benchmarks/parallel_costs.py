# SPDX-License-Identifier: Apache-2.0
"""The bytes that a loss over a shared vocabulary sends and holds: formulas, and docs/distributed.md's tables of them.

    python benchmarks/parallel_costs.py        writes the tables

tests/distributed/test_parallel_costs.py counts what really runs on 2 and 4 ranks and holds the formulas to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tables import filled, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "distributed.md"

ROWS = 8192
RANKS = (1, 2, 4, 8, 16, 32, 64)
CLASSES = (32_768, 131_072, 262_144, 1_048_576)
# A number of the loss's sums, in float32.
_SUM_BYTES = 4


class Sizes(NamedTuple):
    """One training step's logits `[rows, classes]`, of which each rank has an equal share of the classes."""

    rows: int
    classes: int
    ranks: int
    logit_bytes: int = 2
    lanes: int = 2  # numbers a row in the second collective; weights and smoothing add one each

    @property
    def own_bytes(self) -> int:
        """This rank's logits."""
        return self.rows * self.classes * self.logit_bytes // self.ranks


class Collective(NamedTuple):
    name: str
    payload: int  # bytes that a rank hands over

    def wire(self, ranks: int) -> float:
        """Bytes that a rank sends, in a ring."""
        return self.payload * (ranks - 1) * (2 / ranks if self.name == "all_reduce" else 1)


def ours(p: Sizes) -> list[Collective]:
    """The first is the agreement on a CPU, of four float64 a rank; elsewhere the max takes two numbers a rank along."""
    agreement = 8 * 4 * p.ranks
    return [Collective("all_reduce", size) for size in (agreement, _SUM_BYTES * p.rows, _SUM_BYTES * p.lanes * p.rows)]


def loss_parallel(p: Sizes) -> list[Collective]:
    """torch.distributed.tensor.parallel.loss_parallel: max, sum, and the target's log-probability in logits' dtype."""
    return [Collective("all_reduce", of_row * p.rows) for of_row in (_SUM_BYTES, _SUM_BYTES, p.logit_bytes)]


def gathered(p: Sizes) -> list[Collective]:
    """All logits to every rank, then F.cross_entropy."""
    return [Collective("all_gather_into_tensor", p.own_bytes)]


def ours_memory(p: Sizes) -> int:
    """Bytes beside this rank's logits at the peak, the gradient included, numbers of size `[rows]` left out."""
    return p.own_bytes


def loss_parallel_memory(p: Sizes) -> int:
    """In float32: log-probabilities, one-hot, exp and their sum; two-byte logits are widened first."""
    return p.own_bytes * (7 if p.logit_bytes == 2 else 4)


def gathered_memory(p: Sizes) -> int:
    """The logits, their log-probabilities and a gradient, each whole."""
    return 3 * p.own_bytes * p.ranks


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text("utf-8"), blocks(), PAGE.name), "utf-8")


def blocks() -> dict[str, str]:
    """The tables by the names of the page's markers."""
    return {
        "wire": table(("ranks", "ours", "loss_parallel", *(f"gathered, {c:,}" for c in CLASSES)), _wire_lines()),
        "memory": table(("ranks", *(f"{c:,} classes" for c in CLASSES)), _memory_lines()),
    }


def _wire_lines() -> Iterator[list[str]]:
    for ranks in RANKS:
        one, *others = (Sizes(ROWS, classes, ranks) for classes in CLASSES)
        sent = [ours(one), loss_parallel(one), gathered(one), *(gathered(other) for other in others)]
        yield [str(ranks), *(_size(sum(c.wire(ranks) for c in collectives)) for collectives in sent)]


def _memory_lines() -> Iterator[list[str]]:
    for ranks in RANKS:
        problems = [Sizes(ROWS, classes, ranks) for classes in CLASSES]
        held = [(ours_memory(p), loss_parallel_memory(p), gathered_memory(p)) for p in problems]
        yield [str(ranks), *(" / ".join(_size(size) for size in sizes) for sizes in held)]


def _size(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return "0"


if __name__ == "__main__":
    main()
