# SPDX-License-Identifier: Apache-2.0
"""What launches, copies and vector instructions cost. Times are those of device events; sizes grow until the next one
would take longer than the question may.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from npu_ce_jit.board.probes import LANES, MOST_LANES, Launch, Probes, time_of

_KIB, _MIB = 1 << 10, 1 << 20
_REPEAT_LANES = 64
_LAUNCHES = 100
_ROUNDS = 3
_PIECES_KIB = (1, 2, 4, 8, 16, 32)
_WORKING_SETS_MIB = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_BY_SIZE_MIB = (1, 16, 256)
_LONG_ENOUGH_SECONDS = 1e-3  # a launch's own time is negligible in it
_MOST_TURNS = 1 << 16
_VECTOR_OPERATIONS = (
    "Add", "Mul", "Div", "Max", "Exp", "Ln", "AddZero", "Equal", "Select", "FloatToHalf", "HalfToFloat", "Gather",
    "GatherMask", "WholeReduceMax", "WholeReduceSum", "BlockReduceSum", "PairReduceSum", "ReduceSum",
)  # fmt: skip


def launch_cost(probes: Probes, cores: int) -> dict[str, Any]:
    """Microseconds to launch an empty kernel. Alone, the slower of host and device decides; behind work, the device."""
    found: dict[str, Any] = {}
    for blocks in (1, cores):
        empty = probes.empty(blocks)
        time_of(probes, empty, 1)
        alone = time_of(probes, empty, _LAUNCHES)
        # Work that takes the device longer than the host needs to issue all launches.
        turns = _enough(_exp_of_turns(probes), probes, 3 * _LAUNCHES * alone.on_device)
        behind = time_of(probes, empty, _LAUNCHES, _exp_of_turns(probes)(turns))
        found[f"{blocks} blocks" if blocks > 1 else "1 block"] = {
            "us on the device": _rounded(behind.on_device * 1e6),
            "us alone": _rounded(alone.on_device * 1e6),
            "us on the host": _rounded(alone.on_host * 1e6),
        }
    return found


def bandwidth_by_size(probes: Probes, cores: int, seconds: float, *, writes: bool) -> dict[str, Any]:
    """GB/s of all cores, by the KiB of a copy, over the largest working set that there is time for."""
    slowest = _copied(probes, cores, _BY_SIZE_MIB[0] * _MIB, _KIB, writes=writes)
    seconds_of_a_mib = len(_PIECES_KIB) * (1 + _ROUNDS) * _MIB * (1 + writes) / (slowest * 1e9)
    mib = max((size for size in _BY_SIZE_MIB if size * seconds_of_a_mib < seconds), default=_BY_SIZE_MIB[0])
    return {
        "working set, MiB": mib,
        **{f"{kib} KiB": _copied(probes, cores, mib * _MIB, kib * _KIB, writes=writes) for kib in _PIECES_KIB},
    }


def bandwidth_by_working_set(probes: Probes, cores: int, seconds: float, *, writes: bool) -> dict[str, Any]:
    """GB/s of all cores in copies of 16 KiB, by the MiB of the working set, as far as time and memory allow."""
    free: int = torch.get_device_module(probes.device).mem_get_info()[0]
    began, found, took = time.perf_counter(), {}, 0.0
    for mib in _WORKING_SETS_MIB:
        if 2 * mib * _MIB > free / 2 or time.perf_counter() - began + 4 * took > seconds:
            break
        step = time.perf_counter()
        found[f"{mib} MiB"] = _copied(probes, cores, mib * _MIB, 16 * _KIB, writes=writes)
        took = time.perf_counter() - step
    return found


def vector_times(probes: Probes) -> dict[str, Any]:
    """Nanoseconds of a repeat of 64 float32 lanes, and the fixed cost of an instruction with the barrier after it."""
    found = {}
    for name in _VECTOR_OPERATIONS:
        many, few = _turn_times(probes, name, (MOST_LANES, LANES))
        repeat = (many - few) / ((MOST_LANES - LANES) / _REPEAT_LANES)
        found[name] = [_rounded(repeat * 1e9), _rounded((few - repeat * LANES / _REPEAT_LANES) * 1e9)]
    return {"ns of a repeat, ns beside": found}


def gather_mask_stall(probes: Probes) -> dict[str, Any]:
    """Nanoseconds of a turn: Adds of 64 repeats, then one repeat of Adds, or of GatherMask, which reads its count."""
    turns = {name: _turn_times(probes, name, (MOST_LANES,))[0] for name in ("AddThenAdd", "AddThenGatherMask")}
    return {f"ns, {name}": _rounded(seconds * 1e9) for name, seconds in turns.items()}


def _turn_times(probes: Probes, name: str, lanes: tuple[int, ...]) -> list[float]:
    """Seconds of a turn, for each of these counts of lanes, in launches of the same number of turns."""

    def launch_of(turns: int) -> Launch:
        return probes.vector_turns(name, lanes[0], turns)

    turns = _enough(launch_of, probes, _LONG_ENOUGH_SECONDS)
    launches = [probes.vector_turns(name, count, turns) for count in lanes]
    return [min(time_of(probes, launch, 1).on_device for _ in range(_ROUNDS)) / turns for launch in launches]


def _copied(probes: Probes, cores: int, size: int, piece: int, *, writes: bool) -> float:
    """GB/s, counting reads and, with `writes`, writes."""
    source, to = (torch.empty(size, dtype=torch.uint8, device=probes.device) for _ in range(2))

    def launch_of(passes: int) -> Launch:
        return probes.copy(source, to, piece, blocks=cores, writes=writes, passes=passes)

    passes = _enough(launch_of, probes, _LONG_ENOUGH_SECONDS)
    seconds = min(time_of(probes, launch_of(passes), 1).on_device for _ in range(_ROUNDS))
    return _rounded(size * passes * (1 + writes) / seconds / 1e9)


def _enough(launch_of: Callable[[int], Launch], probes: Probes, seconds: float) -> int:
    """A number of turns with which a launch takes at least `seconds`, or _MOST_TURNS."""
    turns = 1
    while turns < _MOST_TURNS and time_of(probes, launch_of(turns), 1).on_device < seconds:
        turns *= 4
    return turns


def _exp_of_turns(probes: Probes) -> Callable[[int], Launch]:
    return lambda turns: probes.vector_turns("Exp", MOST_LANES, turns)


def _rounded(number: float) -> float:
    """To three digits, which is more than a second run reproduces."""
    return float(f"{number:.3g}")
