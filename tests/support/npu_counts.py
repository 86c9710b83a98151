# SPDX-License-Identifier: Apache-2.0
"""Counts the NPU kernels' traffic and instructions, with the virtual NPU's counters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from backward_cases import Backward
from backward_npu import Inputs
from npu_kernels import Arguments, forward
from oracle import Options
from recorded_counts import Counts
from torch import Tensor

FORWARD, BACKWARD = "forward on the virtual NPU", "backward on the virtual NPU"
MARGIN = 0.005  # counters are reproducible
# Rows that fit UB; rows of which a tile holds several; narrow rows; fewer rows than cores, split into spans.
SHAPES = [(384, 8080), (961, 1000), (4099, 10), (8, 40_009)]
DTYPES = [torch.float32, torch.bfloat16]


def of_call(name: str, reports: list[dict[str, Any]], logits: Tensor) -> Counts:
    def total(*counters: str) -> int:
        return sum(report["total"][counter] for report in reports for counter in counters)

    elements = logits.numel()
    counts = {
        "bytes read over logits": total("gm_bytes_read") / logits.nbytes,
        "bytes written over logits": total("gm_bytes_written") / logits.nbytes,
        "DMA instructions": total("dma_reads", "dma_writes"),
        "vector instructions": total("vector_instructions"),
        "vector repeats per element": total("vector_repeats") / elements,
        "bank conflicts": total("bank_conflicts"),
        "scalar accesses": total("scalar_ub_accesses", "scalar_gm_accesses"),
        "launches": len(reports),
    }
    return {f"{name}, {counter}": value for counter, value in counts.items()}


def drawn() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Random logits and targets, each with a name."""
    generator = torch.Generator().manual_seed(0)
    for rows, classes in SHAPES:
        target = torch.randint(classes, (rows,), generator=generator)
        for dtype in DTYPES:
            logits = torch.randn(rows, classes, generator=generator).to(dtype)
            yield f"{rows}x{classes} {str(dtype).removeprefix('torch.')}", logits, target


def count_forward() -> Counts:
    counts = {}
    for name, logits, target in drawn():
        for output in ("lse", "log_prob"):
            result = forward(logits, target, Arguments(outputs=(output,)))
            assert result.message == ""
            counts |= of_call(f"{name} with {output}", result.reports, logits)
    return counts


def count_backward(backward: Backward) -> Counts:
    counts = {}
    for name, logits, target in drawn():
        result = backward(Inputs(logits, target, options=Options(reduction="mean"), loss=torch.ones(())))
        counts |= of_call(name, result.reports, logits)
    return counts
