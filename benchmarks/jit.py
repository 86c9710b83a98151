# SPDX-License-Identifier: Apache-2.0
"""What the JIT costs, against torch.utils.cpp_extension.load in the same run, and which of the two is faster.

    python benchmarks/jit.py [--json] [--quick]

"One function" is the same source for both, without torch's headers: what remains is the work of the JIT. "The package"
is our CPU library against one function with torch/extension.h, which an extension in its place would include.

Every measurement runs in fresh processes with caches of its own, and its clock starts after the import of torch. Both
sides may use the same number of jobs, and the same compiler script counts their builds. A crowd's processes start at
once, and its time ends with the last one. torch's cold build is measured between two of ours, of which the mean counts;
a warm time is the median of interleaved runs. The compilers' CPU time shows how much of a cold build was spent waiting
on a busy machine. A cold crowd's time, less one build and less the same crowd's warm time, was spent waiting for the
lock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from jit_player import WAIT_SECONDS
from jit_processes import Processes, Run

CROWD = 16
FORKS = 64
ROUNDS = 9

_ONE_FUNCTION = """
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT int twice(int x) { return 2 * x; }
EXPORT void npu_ce_jit_register() {}  // our loader calls these
EXPORT const void* npu_ce_jit_kernels() { return nullptr; }
EXPORT void npu_ce_jit_set_huge_pages(int) {}
"""
_TORCH_MODULE = """
#include <torch/extension.h>
torch::Tensor twice(torch::Tensor x) { return x + x; }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("twice", &twice); }
"""


class Comparison(NamedTuple):
    """The figures of both sides; None for a side that did not finish in time."""

    what: str
    unit: str
    ours: float | None
    torchs: float | None

    @property
    def verdict(self) -> str:
        if self.ours == self.torchs:
            return "the same"
        if self.ours is None or self.torchs is None:
            return f"{'npu_ce_jit' if self.torchs is None else 'torch'} wins"
        names, less, more = ("npu_ce_jit", "torch"), *sorted((self.ours, self.torchs))
        winner = names[self.ours > self.torchs]
        if self.unit == "":
            return f"{winner} wins: {less:g} against {more:g}"
        return f"{winner} {more / less:.1f}x faster"


class Bar(NamedTuple):
    """A figure of ours, and the most that it may be."""

    what: str
    unit: str
    value: float
    most: float

    @property
    def is_met(self) -> bool:
        return self.value <= self.most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="one round of what is warm: shows that it works")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        comparisons, bars = measure(Path(name), 1 if arguments.quick else ROUNDS)
    if arguments.json:
        rows = [{**one._asdict(), "verdict": one.verdict} for one in comparisons]
        print(
            json.dumps({"comparisons": rows, "bars": [{**bar._asdict(), "met": bar.is_met} for bar in bars]}, indent=2)
        )
        return
    print(f"{'':58} {'npu_ce_jit':>12} {'torch':>12}")
    for one in comparisons:
        print(f"{one.what:58} {_text(one.ours, one.unit):>12} {_text(one.torchs, one.unit):>12}  {one.verdict}")
    print()
    for bar in bars:
        print(
            f"{bar.what:71} {_text(bar.value, bar.unit):>12}  {'met' if bar.is_met else 'MISSED'}, bar <= {bar.most:g}"
        )


def measure(directory: Path, rounds: int) -> tuple[list[Comparison], list[Bar]]:
    function = directory / "one" / "csrc" / "cpu" / "one_function.cpp"
    function.parent.mkdir(parents=True)
    function.write_text(_ONE_FUNCTION, "utf-8")
    module = directory / "one_module.cpp"
    module.write_text(_TORCH_MODULE, "utf-8")
    processes = Processes(directory)
    for player in ("our_jit", "torch_load"):  # writes the byte code
        processes.run(player, function, "first")
    toy = Duel(processes, Side("our_jit", function), Side("torch_load", function), rounds)
    package = Duel(processes, Side("our_package", function), Side("torch_module", module), rounds)
    locks = [processes.regain(lock) for lock in ("our_lock", "torch_lock")]
    forks = {cache: processes.run("our_jit", function, "forks", forks=FORKS) for cache in ("cold", "warm")}
    assert locks[0] is not None, "our lock is never regained"
    comparisons = [
        *toy.comparisons("one function"),
        *package.comparisons("the package"),
        Comparison("lock regained after kill -9 of its owner", "s", *locks),
    ]
    bars = [
        Bar("the package: cold build over torch's of one function", "", package.cold[0] / package.cold[1], 0.2),
        Bar("the package: warm import over import torch, median", "ms", package.warm[0] * 1e3, 20.0),
        Bar("the package: processes started by a warm import", "", package.warm_started[0], 0),
        Bar(f"the package: builds by {CROWD} cold processes", "", package.crowd_cold[0].builds, 1),
        Bar(f"the package: {CROWD} cold, less {CROWD} warm and one build", "s", package.waited, 3.0),
        Bar(f"one function: builds by {FORKS} cold forks", "", forks["cold"].builds, 1),
        Bar(f"one function: processes started by {FORKS} warm forks", "", forks["warm"].started, 0),
        Bar(
            f"one function: {FORKS} cold forks, less {FORKS} warm and one build", "s",
            forks["cold"].seconds - forks["warm"].seconds - toy.build, 3.0,
        ),
        Bar("lock regained after kill -9 of its owner", "s", locks[0], 1.0),
    ]  # fmt: skip
    return comparisons, bars


class Side(NamedTuple):
    """A player of jit_player.py, and the source that it builds."""

    player: str
    source: Path


class Duel:
    """Two sides, measured in turns. In each pair of results, ours comes first."""

    def __init__(self, processes: Processes, ours: Side, torchs: Side, rounds: int) -> None:
        def run(side: Side, cache: str, crowd: int = 1) -> Run:
            return processes.run(side.player, side.source, cache, crowd=crowd)

        cold = [run(ours, "alone"), run(torchs, "alone"), run(ours, "alone again")]
        warm = [(run(ours, "alone"), run(torchs, "alone")) for _ in range(rounds)]
        self.cold = statistics.mean((cold[0].own, cold[2].own)), cold[1].own
        self.compilers = statistics.mean((cold[0].compilers, cold[2].compilers)), cold[1].compilers
        self.warm = tuple(statistics.median(run.own for run in side) for side in zip(*warm, strict=True))
        self.crowd_cold = run(ours, "crowd", CROWD), run(torchs, "crowd", CROWD)
        self.crowd_warm = run(ours, "crowd", CROWD), run(torchs, "crowd", CROWD)
        runs = zip(*warm, self.crowd_warm, strict=True)
        self.warm_started = tuple(max(run.started for run in side) for side in runs)

    @property
    def build(self) -> float:
        """Seconds of one build of ours, alone."""
        return self.cold[0] - self.warm[0]

    @property
    def waited(self) -> float:
        """Seconds that a cold crowd of ours takes beyond one build and beyond a warm crowd."""
        return self.crowd_cold[0].seconds - self.crowd_warm[0].seconds - self.build

    def comparisons(self, title: str) -> list[Comparison]:
        """The lines of the table."""
        crowds = {"cold": self.crowd_cold, "warm": self.crowd_warm}
        return [
            Comparison(f"{title}: cold build", "s", *self.cold),
            Comparison(f"{title}: cold build, processor time of the compilers", "s", *self.compilers),
            Comparison(f"{title}: warm", "ms", *(seconds * 1e3 for seconds in self.warm)),
            *(
                Comparison(f"{title}: {CROWD} processes, {which}, to the last", "s", *(run.seconds for run in runs))
                for which, runs in crowds.items()
            ),
            Comparison(f"{title}: builds by {CROWD} cold processes", "", *(run.builds for run in self.crowd_cold)),
            Comparison(f"{title}: processes started by a warm one", "", *self.warm_started),
        ]


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return f"> {WAIT_SECONDS:g} s"
    return f"{value:g}" if unit == "" and value == int(value) else f"{value:.3f} {unit}"


if __name__ == "__main__":
    main()
