# SPDX-License-Identifier: Apache-2.0
"""How time and memory are measured: ratios of interleaved runs, and the peak of what the device holds."""

from __future__ import annotations

import gc
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import _disable_profiler_legacy, _enable_profiler_legacy
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

Call = Callable[[], object]

_FEWEST_ROUNDS = 3


@contextmanager
def undisturbed() -> Iterator[None]:
    """Runs a block as in a process of its own: torch's global settings in this process do not affect it, and random
    numbers drawn in it do not advance this process's generator. The seed is 0.
    """
    dtype, is_deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    # Only where a default device is set: the context is a mode, which adds time to each of torch's functions.
    on_cpu = nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch._C._DisableAutocast(),
        on_cpu,
    ):
        torch.default_generator.manual_seed(0)  # not torch.manual_seed, which seeds every device
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)


def interleaved(
    implementations: Mapping[str, Call],
    rounds: int,
    calls: int = 1,
    wait: Call = lambda: None,
    prepare: Call = lambda: None,
    seconds_at_most: float = math.inf,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call of each implementation, by round. Every round runs each once, in shuffled order.

    `wait` waits for a device that is still working when a call returns; `prepare` runs before the clock starts. After
    `seconds_at_most` no round begins except the first three. With `clock=time.process_time`, seconds are the CPU time
    of all threads, whatever other processes run; a thread that sleeps until another is done costs nothing then.

    Other load on the machine affects all implementations of a round alike, so the ratio within a round means something
    where a time alone does not.
    """
    for call in implementations.values() if warm_up else ():
        prepare()
        call()
    order = random.Random()  # noqa: S311  of its own: the program's does not advance
    began = time.perf_counter()
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for done in range(rounds):
        if done >= _FEWEST_ROUNDS and time.perf_counter() - began > seconds_at_most:
            break
        for name in order.sample(list(implementations), len(implementations)):
            prepare()
            wait()
            start = clock()
            for _ in range(calls):
                implementations[name]()
            wait()
            seconds[name].append((clock() - start) / calls)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], of: str, to: str) -> float:
    """The median over the rounds of the time of `of` in units of the time of `to`."""
    return statistics.median(a / b for a, b in zip(seconds[of], seconds[to], strict=True))


def peak_memory(call: Call, device: torch.device | None = None) -> int | None:
    """Bytes that the call and its result take at their peak.

    On the CPU by the process's resident set; None where the system does not tell (not Linux).
    """
    if device is not None and device.type != "cpu":
        return _peak_on_device(call, torch.get_device_module(device))
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    call()
    gc.collect()
    reset.write_text("5")  # resets VmHWM: man 5 proc
    before = _status_bytes("VmRSS")
    kept = call()
    peak = _status_bytes("VmHWM") - before
    del kept
    return peak


def peak_allocated(call: Call, warm_up: bool = True) -> int:
    """Bytes that torch allocates on the CPU for the call and its result, at their peak; exact, the same in each run."""
    if warm_up:
        call()
    # The only profiler that reports every allocation in order and writes nothing to stderr.
    config = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
    _enable_profiler_legacy(config)
    try:
        kept = call()
    finally:
        threads = _disable_profiler_legacy()
    events = [event for of_thread in threads for event in of_thread if str(event.kind()) == "memory_alloc"]
    del kept
    return max(itertools.accumulate(event.cpu_memory_usage() for event in events), default=0)


def _peak_on_device(call: Call, backend: Any) -> int:
    """By torch's allocator, whose numbers are exact."""
    backend.synchronize()
    gc.collect()
    backend.reset_peak_memory_stats()
    before = backend.memory_allocated()
    kept = call()
    peak: int = backend.max_memory_allocated() - before
    del kept
    return peak


def _status_bytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
