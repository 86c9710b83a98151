# SPDX-License-Identifier: Apache-2.0
"""The loss itself: captured in a graph, and timed beside torch's and torch_npu's operators."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.bench import cases
from npu_ce_jit.bench.cases import DTYPES, FORMS, Cell, Effort
from npu_ce_jit.bench.implementations import IMPLEMENTATIONS

# In ascending size, so that the largest are left out when time runs out.
_SHAPES = ((16, 1000), (4, 131072), (1024, 1024), (48, 131072), (4096, 8080), (1024, 32000), (1024, 128256))
_EFFORT = Effort(rounds=5, seconds=1.0, compile=False, calls=10)
_SHOWN = ("milliseconds", "share of the limit", "peak over logits", "value")
_GRAPH_SHAPE = (1024, 8080)
_WARM_UPS, _REPLAYS = 3, 20


def beside_peers(device: torch.device, seconds: float) -> dict[str, Any]:
    """The numbers of `bench`, under its names, for as many cells as there is time for; and why others did not run."""
    began, seconds_of_an_element = time.perf_counter(), 0.0
    found: dict[str, Any] = {}
    not_run: dict[str, str] = {}
    for (rows, classes), dtype, form, loss in product(_SHAPES, DTYPES, FORMS, ("cross_entropy", "drop-in")):
        began_cell = time.perf_counter()
        if began_cell - began + seconds_of_an_element * rows * classes > seconds:
            break
        cell = Cell(loss, form, dtype, rows, classes)
        implementations = [one for one in IMPLEMENTATIONS[loss] if not one.compiles]
        of_cell = found[f"{loss}, {form}, {dtype}, {cell.shape}"] = {}
        for row in cases.measure(cell, implementations, device, _EFFORT):
            if "not run" in row:
                not_run.setdefault(row["implementation"], row["not run"])
            else:
                of_cell[row["implementation"]] = {name: float(f"{row[name]:.4g}") for name in _SHOWN if name in row}
        seconds_of_an_element = (time.perf_counter() - began_cell) / (rows * classes)
    return {"not run": not_run, **found}


def graph_step(device: torch.device) -> dict[str, Any]:
    """Captures forward and backward in a graph, and compares its replay on other logits with an eager step."""
    backend = torch.get_device_module(device)
    loss: Callable[..., Any] = IMPLEMENTATIONS["cross_entropy"][0].load()
    generator = torch.Generator().manual_seed(0)
    first, other = (torch.randn(_GRAPH_SHAPE, generator=generator).to(device) for _ in range(2))
    x = first.clone().requires_grad_()
    target = torch.arange(_GRAPH_SHAPE[0]).to(device)

    def step() -> tuple[Tensor, Tensor]:
        value = loss(x, target)
        return value.detach(), torch.autograd.grad(value, x)[0]

    aside = backend.Stream()
    aside.wait_stream(backend.current_stream())
    with backend.stream(aside):
        for _ in range(_WARM_UPS):
            step()
    backend.current_stream().wait_stream(aside)
    graph = backend.NPUGraph()
    with backend.graph(graph):
        captured = step()
    x.detach().copy_(other)
    graph.replay()
    backend.synchronize()
    replayed = [one.cpu() for one in captured]
    eager = [one.cpu() for one in step()]
    same = all(torch.equal(one, two) for one, two in zip(replayed, eager, strict=True))
    return {
        "the bits of the eager step": same,
        "us, replayed": _microseconds(graph.replay, backend),
        "us, eager": _microseconds(step, backend),
    }


def same_bits(answer: Any, assumed: Any) -> bool:
    return bool(answer["the bits of the eager step"] == assumed["the bits of the eager step"])


def _microseconds(call: Callable[[], object], backend: Any) -> float:
    call()
    backend.synchronize()
    start = time.perf_counter()
    for _ in range(_REPLAYS):
        call()
    backend.synchronize()
    return round((time.perf_counter() - start) / _REPLAYS * 1e6, 1)
