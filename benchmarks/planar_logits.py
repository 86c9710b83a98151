# SPDX-License-Identifier: Apache-2.0
"""Forward and backward of segmentation's logits, [N, C, H, W], against F.cross_entropy.

    python benchmarks/planar_logits.py [ROUNDS]

One interleaved run for each shape, dtype and layout; medians of ratios, and the peak of what torch allocates. Fails
where a bar is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from bars import Verdict
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.bench.timing import interleaved, median_ratio, peak_allocated

SHAPES = ((4, 2, 512, 512), (1, 150, 256, 256), (2, 21, 256, 256), (8, 19, 128, 128))
UNLISTED = ((1, 3, 701, 719), (2, 133, 161, 203), (3, 29, 211, 199))
DTYPES = (torch.float32, torch.bfloat16)
# By layout, how many times as fast as torch at least.
LAYOUTS = {torch.contiguous_format: 1.5, torch.channels_last: 1.0}
LEAST_MEMORY = 1.0

Loss = Callable[[Tensor, Tensor], Tensor]
WAYS: dict[str, Loss] = {"torch": F.cross_entropy, "ours": npu_ce_jit.cross_entropy}


def verdicts(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, rounds: int
) -> tuple[Verdict, Verdict]:
    logits = torch.randn(shape).to(dtype).contiguous(memory_format=layout).requires_grad_()
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    size = logits.numel() * logits.element_size()

    def step(way: Loss) -> Callable[[], object]:
        return lambda: torch.autograd.grad(way(logits, target), logits)

    steps = {name: step(way) for name, way in WAYS.items()}
    ratio = median_ratio(interleaved(steps, rounds), "torch", "ours")
    peaks = {name: peak_allocated(call, warm_up=False) / size for name, call in steps.items()}
    what = f"{list(shape)} {str(dtype).removeprefix('torch.')} {str(layout).removeprefix('torch.')}"
    memory = peaks["torch"] / peaks["ours"]
    return (
        Verdict(f"times as fast as F.cross_entropy, {what}", f">= {LAYOUTS[layout]}", f"{ratio:.2f}",
                ratio >= LAYOUTS[layout]),
        Verdict(f"times less memory than F.cross_entropy, {what}", f">= {LEAST_MEMORY}",
                f"{memory:.2f}; peak {peaks['ours']:.2f} x logits", round(memory, 2) >= LEAST_MEMORY),
    )  # fmt: skip


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    torch.manual_seed(0)
    every_is_met = True
    for shape in SHAPES + UNLISTED:
        for dtype in DTYPES:
            for layout in LAYOUTS:
                for verdict in verdicts(shape, dtype, layout, rounds):
                    every_is_met &= bool(verdict.met)
                    print(*verdict, sep=" | ", flush=True)
    sys.exit(not every_is_met)


if __name__ == "__main__":
    main()
